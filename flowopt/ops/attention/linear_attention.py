"""Linear attention: features of queries and keys in place of the exponential of their product."""

import math
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention.causal_product import causal_product
from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State
from flowopt.ops.attention.require_tokens import require_tokens
from flowopt.ops.attention.token_sum import token_sum


@final
class LinearAttention(LinearForm):
    """y_i = sum_j w_ij v_j / sum_j w_ij with w_ij = phi(q_i) . phi(k_j), over the keys that query i sees.

    q and k are multiplied by the root of the softmax's scale before the features are taken. A query without a real
    key gets 0. The state is (sum of phi(k)^T v, sum of phi(k), tokens seen): (B, H, F, M), (B, H, 1, F), (B, 1, 1, 1).

    Args:
        shape: of the attention.
        feature_map: phi, for the same shape.
        form, chunk: see ``LinearForm``. Attention that is not causal has one form.

    Source: Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236.
    """

    def __init__(
        self, shape: AttentionShape, *, feature_map: FeatureMap, form: Form = "chunked", chunk: int = 64
    ) -> None:
        super().__init__()
        require_tokens("chunk", chunk)
        self.shape, self.form, self.chunk = shape, form, chunk
        self.feature_map = feature_map

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        precise = torch.promote_types(value.dtype, torch.float32)
        q = self.feature_map.query_features(self._scaled(query, precise), _positions(query, precise))
        k = self.feature_map.key_features(self._scaled(key, precise), _positions(key, precise))
        v = value.to(precise)
        if key_mask is not None:
            k = k * key_mask.to(precise).transpose(-1, -2)
        if self.shape.is_causal and self.form == "recurrent":
            return self._token_by_token(q, k, v, self.initial_state(query)).to(value.dtype)
        if self.shape.is_causal:
            total = causal_product(q, k, v, self.chunk if self.form == "chunked" else None)
            return self._normalised(total, q, k.cumsum(2)).to(value.dtype)
        return self._normalised(q @ (k.transpose(-1, -2) @ v), q, token_sum(k)).to(value.dtype)

    def initial_state(self, like: Tensor) -> State:
        if not self.shape.is_causal:
            raise UserError("attention to all tokens has no state", hint="only causal attention goes token by token")
        precise = torch.promote_types(like.dtype, torch.float32)
        batch, heads = like.shape[:2]
        width = self.feature_map.width
        products = torch.zeros(batch, heads, width, self.shape.value_dim, dtype=precise, device=like.device)
        features = torch.zeros(batch, heads, 1, width, dtype=precise, device=like.device)
        return products, features, torch.zeros(batch, 1, 1, 1, dtype=precise, device=like.device)

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        precise, position = state[0].dtype, state[2] + 1
        q = self.feature_map.query_features(self._scaled(query, precise), position)
        k = self.feature_map.key_features(self._scaled(key, precise), position)
        made, state = self._token(q, k, value.to(precise), state)
        return made.to(value.dtype), state

    def _token(self, q: Tensor, k: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        products, features, seen = state[0] + k.transpose(-1, -2) @ v, state[1] + k, state[2] + 1
        return self._normalised(q @ products, q, features), (products, features, seen)

    def _token_by_token(self, q: Tensor, k: Tensor, v: Tensor, state: State) -> Tensor:
        made = []
        for q_i, k_i, v_i in zip(q.split(1, 2), k.split(1, 2), v.split(1, 2), strict=True):
            one, state = self._token(q_i, k_i, v_i, state)
            made.append(one)
        return torch.cat(made, 2)

    def _normalised(self, total: Tensor, q: Tensor, features: Tensor) -> Tensor:
        """``total`` over the sum of each query's weights, given the sum of the features that it sees."""
        weights = (q * features).sum(-1, keepdim=True)
        return total / weights.clamp(min=self.feature_map.floor)

    def _scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) * math.sqrt(self.shape.scale)


def _positions(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, x.shape[2] + 1, device=x.device).to(dtype)[:, None]
