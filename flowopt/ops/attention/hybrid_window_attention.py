"""Softmax attention to near keys and linear attention to far ones, under one denominator."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.attention._neighbourhood import (
    counted,
    cut,
    divided,
    joined,
    peaked,
    real_tokens,
    summed_before,
    summed_behind,
    with_neighbours,
)
from flowopt.ops.attention.hedgehog_features import HedgehogFeatures
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State
from flowopt.ops.attention.require_tokens import require_tokens

# sigmoid of it is 0.1.
_GATE = -2.197


class _Tokens(NamedTuple):
    """Queries or keys, (.., D), and their features, (.., 2 D)."""

    vectors: Tensor
    features: Tensor


@final
class HybridWindowAttention(LinearForm):
    """Softmax over a window together with Hedgehog features beyond it.

        near_ij = g exp(s_ij - max of s_i over the window), s = scale q k^T, g = sigmoid(gate)
        far_ij = phi_q(q_i) phi_k(k_j), phi of Hedgehog
        y_i = sum_j (near_ij + far_ij) v_j / sum_j (near_ij + far_ij)

    A key is near where 0 <= i - j < window (causal) or |i - j| < window, and far where attention sees it otherwise.
    The maximum is part of the function: far weights are not divided by it. A window of L and more is softmax attention
    for every gate. Padding counts nowhere; positions are differences, so that it may stand on either side.

    Args:
        shape: of the attention; queries and keys are of one sequence.
        form: see ``LinearForm``; ``recurrent`` is causal alone.
        chunk: tokens in a chunk.
        window: keys that softmax sees, the query's own among them.

    Attributes:
        gate: (H, 1, 1), the logit of the softmax part, -2.197 at first, which is a tenth.
        feature_map: phi, of q and k multiplied by the root of the softmax's scale.

    Raises:
        UserError: the window holds no key, attention is to be recurrent and is not causal, or L is not S.

    Source: Zhang et al., "LoLCATs: On Low-Rank Linearizing of Large Language Models", arXiv:2410.10254, section 3.2.
    """

    def __init__(self, shape: AttentionShape, *, form: Form = "chunked", chunk: int = 64, window: int = 64) -> None:
        super().__init__()
        require_tokens("window", window)
        require_tokens("chunk", chunk)
        self.shape, self.form, self.chunk, self.window = shape, form, chunk, window
        self.gate = nn.Parameter(torch.full((shape.heads, 1, 1), _GATE))
        self.feature_map = HedgehogFeatures(shape)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if query.shape[-2] != key.shape[-2]:
            raise UserError(
                f"{query.shape[-2]} queries and {key.shape[-2]} keys have no common positions for a window.",
                hint="only self-attention has a hybrid form",
            )
        real = real_tokens(key, key_mask)
        form = {"parallel": self._parallel, "chunked": self._chunked, "recurrent": self._recurrent}[self.form]
        total = form(*self._with_features(query.to(real.dtype), key.to(real.dtype)), counted(value, real))
        return divided(total).to(value.dtype)

    def _parallel(self, query: _Tokens, key: _Tokens, weighed: Tensor) -> Tensor:
        position = torch.arange(weighed.shape[2], device=weighed.device)
        near, far = self._seen(position[:, None] - position)
        return self._weights(query, key, weighed, near, far) @ weighed

    def _chunked(self, query: _Tokens, key: _Tokens, weighed: Tensor) -> Tensor:
        chunk = self.chunk
        before = (self.window + chunk - 2) // chunk
        behind = 0 if self.shape.is_causal else before
        queries, keys = (_Tokens(cut(x.vectors, chunk), cut(x.features, chunk)) for x in (query, key))
        values = cut(weighed, chunk)
        inside = torch.arange(chunk, device=weighed.device)
        around = torch.arange((before + 1 + behind) * chunk, device=weighed.device) - before * chunk
        near, far = self._seen(inside[:, None] - around)
        near_keys = _Tokens(*(with_neighbours(x, before, behind) for x in keys))
        near_values = with_neighbours(values, before, behind)
        sums = keys.features.transpose(-1, -2) @ values
        beyond = summed_before(sums, before + 1)
        if not self.shape.is_causal:
            beyond = beyond + summed_behind(sums, behind + 1)
        total = self._weights(queries, near_keys, near_values, near, far) @ near_values + queries.features @ beyond
        return joined(total, weighed.shape[2])

    def _recurrent(self, query: _Tokens, key: _Tokens, weighed: Tensor) -> Tensor:
        state, made = self.initial_state(weighed), []
        for token in range(weighed.shape[2]):
            here = slice(token, token + 1)
            now, given = (_Tokens(*(y[:, :, here] for y in x)) for x in (query, key))
            total, state = self._stepped(now, given, weighed[:, :, here], state)
            made.append(total)
        return torch.cat(made, 2)

    def initial_state(self, like: Tensor) -> State:
        """The window but the next key, with its values, (B, H, window - 1, D) and (B, H, window - 1, M + 1); and the
        sums over what left it, (B, H, 2 D, M + 1). The last column counts."""
        if not self.shape.is_causal:
            raise UserError("attention to all tokens has no state", hint="only causal attention goes token by token")
        precise = torch.promote_types(like.dtype, torch.float32)
        batch, heads = like.shape[:2]
        width, columns = self.shape.head_dim, self.shape.value_dim + 1

        def zeros(rows: int, columns: int) -> Tensor:
            return torch.zeros(batch, heads, rows, columns, dtype=precise, device=like.device)

        return zeros(self.window - 1, width), zeros(self.window - 1, columns), zeros(2 * width, columns)

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        real = real_tokens(key, None)
        now, given = self._with_features(query.to(real.dtype), key.to(real.dtype))
        total, state = self._stepped(now, given, counted(value, real), state)
        return divided(total).to(value.dtype), state

    def _stepped(self, query: _Tokens, key: _Tokens, weighed: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values = (torch.cat(pair, 2) for pair in ((state[0], key.vectors), (state[1], weighed)))
        gate = self.gate.to(keys.dtype).sigmoid()
        scores = query.vectors @ keys.transpose(-1, -2) * self.shape.scale
        near = gate * peaked(scores, values[..., -1:].transpose(-1, -2) > 0)
        total = near @ values + query.features @ state[2]
        # A slot that was never filled has values of zero, and adds nothing when it leaves.
        gone = self._key_features(keys[:, :, :1]).transpose(-1, -2) @ values[:, :, :1]
        return total, (keys[:, :, 1:], values[:, :, 1:], state[2] + gone)

    def _with_features(self, query: Tensor, key: Tensor) -> tuple[_Tokens, _Tokens]:
        # Hedgehog's features are of no position.
        features = self.feature_map.query_features(query * self.shape.scale**0.5, query[..., :1])
        return _Tokens(query, features), _Tokens(key, self._key_features(key))

    def _key_features(self, key: Tensor) -> Tensor:
        return self.feature_map.key_features(key * self.shape.scale**0.5, key[..., :1])

    def _seen(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Which keys are near and which are far, by query position less key position."""
        if self.shape.is_causal:
            return (distance >= 0) & (distance < self.window), distance >= self.window
        return distance.abs() < self.window, distance.abs() >= self.window

    def _weights(self, query: _Tokens, key: _Tokens, weighed: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """(.., queries, keys) before the division; padding is not seen by softmax, and has values of zero."""
        real = weighed[..., -1:].transpose(-1, -2) > 0
        gate = self.gate.to(weighed.dtype).sigmoid()
        scores = query.vectors @ key.vectors.transpose(-1, -2) * self.shape.scale
        linear = query.features @ key.features.transpose(-1, -2)
        placed = gate if scores.dim() == 4 else gate[:, None]
        return placed * peaked(scores, near & real) + linear * far
