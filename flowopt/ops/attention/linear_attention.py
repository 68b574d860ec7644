"""Linear attention: features of queries and keys in place of the exponential of their product."""

import math
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention.causal_product import causal_product
from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State


@final
class LinearAttention(LinearForm):
    """y_i = sum_j w_ij v_j / sum_j w_ij with w_ij = phi(q_i) . phi(k_j), over the keys that query i sees.

    q and k are multiplied by the root of the softmax's scale before the features are taken. The state is
    (sum of phi(k)^T [v, 1], tokens seen): (B, H, F, M + 1) and (B, 1, 1, 1).

    Args:
        shape: of the attention.
        feature_map: phi, for the same shape.
        form, chunk: see ``LinearForm``. Attention that is not causal has one form.
    """

    def __init__(
        self, shape: AttentionShape, *, feature_map: FeatureMap, form: Form = "chunked", chunk: int = 64
    ) -> None:
        super().__init__()
        self.shape, self.form, self.chunk = shape, form, chunk
        self.feature_map = feature_map

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        precise = torch.promote_types(value.dtype, torch.float32)
        q = self.feature_map.query_features(self._scaled(query, precise), _positions(query, precise))
        k = self.feature_map.key_features(self._scaled(key, precise), _positions(key, precise))
        if key_mask is not None:
            k = k * key_mask.to(precise).transpose(-1, -2)
        v = _with_ones(value.to(precise))
        if not self.shape.is_causal:
            sums = q @ (k.transpose(-1, -2) @ v)
        elif self.form == "recurrent":
            state, tokens = self.initial_state(query)[0], []
            for i in range(query.shape[2]):
                state = _updated(state, k[:, :, i : i + 1], v[:, :, i : i + 1])
                tokens.append(q[:, :, i : i + 1] @ state)
            sums = torch.cat(tokens, 2)
        else:
            sums = causal_product(q, k, v, self.chunk if self.form == "chunked" else None)
        return self._normalised(sums).to(value.dtype)

    def initial_state(self, like: Tensor) -> State:
        if not self.shape.is_causal:
            raise UserError("attention to all tokens has no state", hint="only causal attention goes token by token")
        precise = torch.promote_types(like.dtype, torch.float32)
        batch, heads = like.shape[:2]
        sums = torch.zeros(batch, heads, self.feature_map.width, self.shape.value_dim + 1, dtype=precise)
        return sums.to(like.device), torch.zeros(batch, 1, 1, 1, dtype=precise, device=like.device)

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        precise, position = state[0].dtype, state[1] + 1
        k = self.feature_map.key_features(self._scaled(key, precise), position)
        q = self.feature_map.query_features(self._scaled(query, precise), position)
        sums = _updated(state[0], k, _with_ones(value.to(precise)))
        return self._normalised(q @ sums).to(value.dtype), (sums, position)

    def _scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) * math.sqrt(self.shape.scale)

    def _normalised(self, sums: Tensor) -> Tensor:
        return sums[..., :-1] / sums[..., -1:].clamp(min=self.feature_map.floor)


def _positions(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, x.shape[2] + 1, device=x.device).to(dtype)[:, None]


def _with_ones(value: Tensor) -> Tensor:
    """The values and a column that sums the weights up."""
    return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def _updated(state: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return state + key.transpose(-1, -2) @ value
