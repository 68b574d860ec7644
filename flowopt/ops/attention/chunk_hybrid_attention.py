"""Softmax attention inside a chunk, and a decaying linear state across chunks."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.errors import UserError
from flowopt.ops.attention._neighbourhood import counted, cut, divided, joined, peaked, real_tokens
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State
from flowopt.ops.attention.require_tokens import require_tokens

# As published: what is forgotten per token is sigmoid(0)^(1/16).
_SLOWNESS = 16


@final
class ChunkHybridAttention(LinearForm):
    """Each chunk c attends to itself by softmax, and to the chunks before it through a state S.

        y_t = softmax_own chunk(scale q_t k^T) v + gain exp(n_t g) unit(q_t) S_c, g = logsigmoid(gate) / 16
        S_c = exp(g) S_{c-1} + sum over chunk c-1 of unit(k_j)^T v_j / chunk, S_0 = 0

    with n_t = 1 ... chunk a token's place in its chunk, and unit(x) = x / |x|. There is no denominator: where the gain
    is not 0, weights do not sum to one.

    What comes later is never seen in a later chunk. Inside of a chunk, attention that is not causal sees the whole
    chunk, and never what is behind it: it is causal over chunks. Causal attention sees its chunk up to the query.

    Padding counts nowhere, but chunks are counted from the first token, padding or not: padding in front moves them,
    unless it is whole chunks.

    Args:
        shape: of the attention; queries and keys are of one sequence.
        form: ``recurrent`` goes chunk by chunk; ``chunked`` takes all chunks at once, with states of L / chunk chunks
            from products of (L / chunk)^2 weights; ``parallel`` writes all pairs out.
        chunk: tokens in a chunk.

    Attributes:
        gate: (H, 1, 1), 0 at first: a chunk forgets 4 percent.
        gain: (H, 1, 1), of the linear part, 0 at first, which is softmax inside of each chunk alone.

    Raises:
        UserError: L is not S.

    Source: Hui et al., "ARFlow: Autoregressive Flow with Hybrid Linear Attention", arXiv:2501.16085; the authors' code.
    There, gates are computed from each token, and norms with weights stand around.
    """

    def __init__(self, shape: AttentionShape, *, form: Form = "chunked", chunk: int = 64) -> None:
        super().__init__()
        require_tokens("chunk", chunk)
        self.shape, self.form, self.chunk = shape, form, chunk
        self.gate = nn.Parameter(torch.zeros(shape.heads, 1, 1))
        self.gain = nn.Parameter(torch.zeros(shape.heads, 1, 1))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if query.shape[-2] != key.shape[-2]:
            raise UserError(
                f"{query.shape[-2]} queries and {key.shape[-2]} keys have no common chunks.",
                hint="only self-attention has this form",
            )
        real = real_tokens(key, key_mask)
        weighed = counted(value, real)
        queries, keys, values = (cut(x.to(real.dtype), self.chunk) for x in (query, key, weighed))
        if self.form == "parallel":
            made = self._pairs(queries, keys, values)
        else:
            states = self._states(_outer(keys, values))
            made = self._inside(queries, keys, values, self._visible(queries)) + self._across(queries) @ states
        return joined(made, query.shape[-2]).to(value.dtype)

    def _states(self, outer: Tensor) -> Tensor:
        """The state before each chunk, out of what each adds: (B, H, chunks, D, M)."""
        batch, heads, chunks, width, columns = outer.shape
        if self.form == "recurrent":
            state, states = torch.zeros_like(outer[:, :, 0]), []
            for added in outer.unbind(2):
                states.append(state)
                state = self._forget(outer).exp() * state + added
            return torch.stack(states, 2)
        weights = self._kept(torch.arange(chunks, device=outer.device), outer)
        return (weights @ outer.reshape(batch, heads, chunks, width * columns)).reshape(outer.shape)

    def _kept(self, chunk: Tensor, like: Tensor) -> Tensor:
        """What the state before chunk c holds of an earlier one, (H, .., ..); 0 of its own and later ones."""
        distance = (chunk[:, None] - chunk - 1).to(like.dtype)
        kept = (self._forget(like) * distance.clamp(min=0.0)).exp()
        return kept.masked_fill(distance < 0, 0.0)

    def _forget(self, like: Tensor) -> Tensor:
        return functional.logsigmoid(self.gate.to(like.dtype)) / _SLOWNESS

    def _across(self, queries: Tensor) -> Tensor:
        """Queries (B, H, chunks, chunk, D) as the state is read by them."""
        place = torch.arange(1, self.chunk + 1, device=queries.device, dtype=queries.dtype)[:, None]
        scale = self.gain.to(queries.dtype) * (self._forget(queries) * place).exp()
        return _unit(queries) * (scale / self.chunk)[:, None]

    def _visible(self, queries: Tensor) -> Tensor:
        inside = torch.arange(self.chunk, device=queries.device)
        return inside[:, None] >= inside if self.shape.is_causal else inside[:, None] > inside - self.chunk

    def _inside(self, queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        scores = queries @ keys.transpose(-1, -2) * self.shape.scale
        return divided(peaked(scores, visible & (values[..., -1:].transpose(-1, -2) > 0)) @ values)

    def _pairs(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        read = self._across(queries)
        query, seen, key, value = (x.flatten(2, 3) for x in (queries, read, keys, values))
        token = torch.arange(query.shape[2], device=query.device)
        chunk = token // self.chunk
        visible = chunk[:, None] == chunk
        if self.shape.is_causal:
            visible = visible & (token[:, None] >= token)
        linear = seen @ _unit(key).transpose(-1, -2) * self._kept(chunk, query)
        made = self._inside(query, key, value, visible) + linear @ value[..., :-1]
        return made.reshape(*queries.shape[:-1], made.shape[-1])

    def initial_state(self, like: Tensor) -> State:
        """The keys of the chunk so far with their values, (B, H, chunk - 1, D) and (B, H, chunk - 1, M + 1), of which
        the last column counts; the state across chunks, (B, H, D, M); and the tokens of the chunk so far, (1,)."""
        if not self.shape.is_causal:
            raise UserError(
                "Attention to all of a chunk does not go token by token.",
                why="A step of it is a whole chunk.",
                hint='forward with form="recurrent" goes chunk by chunk; only causal attention goes token by token',
            )
        precise = torch.promote_types(like.dtype, torch.float32)
        batch, heads = like.shape[:2]
        width, columns = self.shape.head_dim, self.shape.value_dim

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=precise, device=like.device)

        past = self.chunk - 1
        return (
            zeros(batch, heads, past, width),
            zeros(batch, heads, past, columns + 1),
            zeros(batch, heads, width, columns),
            zeros(1),
        )

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        real = real_tokens(key, None)
        now = query.to(real.dtype)
        keys = torch.cat([state[0], key.to(real.dtype)], 2)
        values = torch.cat([state[1], counted(value, real)], 2)
        place = state[3] + 1
        forget = self._forget(now)
        scale = self.gain.to(now.dtype) * (forget * place).exp() / self.chunk
        everything = torch.ones((), dtype=torch.bool, device=query.device)
        made = self._inside(now, keys, values, everything) + (_unit(now) * scale) @ state[2]
        is_full = place >= self.chunk
        across = torch.where(is_full, forget.exp() * state[2] + _outer(keys, values), state[2])
        left = torch.where(is_full, 0.0, values[:, :, 1:])
        return made.to(value.dtype), (keys[:, :, 1:], left, across, torch.where(is_full, 0.0, place))


def _outer(keys: Tensor, values: Tensor) -> Tensor:
    return _unit(keys).transpose(-1, -2) @ values[..., :-1]


def _unit(x: Tensor) -> Tensor:
    # Below this a key is as good as none; its square is in range of float32.
    return x / x.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt()
