"""Softmax attention to the own row of a sequence, and to all other rows by a summary each."""

from typing import final

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.attention._neighbourhood import counted, cut, divided, joined, peaked, real_tokens
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State
from flowopt.ops.attention.require_tokens import require_tokens


@final
class CombinerAttention(LinearForm):
    """The sequence in rows of ``chunk`` tokens: keys of the own row directly, any other row r by way of p(r | i).

        p(j | i) ~ exp(scale q_i k_j) in the own row, p(r | i) ~ n_r exp(scale q_i K mean_r k) for another row
        p(j | i) = p(r | i) p(j | r) there, p(j | r) ~ exp(scale (Q mean_r q) k_j)

    with one softmax over the keys of the own row and all other rows, n_r the keys of a row, and weights inside of a row
    that do not depend on the query. Weights of a query sum to one; where the keys of each row are equal, and their
    maps the identity, this is softmax attention. Causal attention sees its own row up to the query, and rows before.
    Cost L (chunk + L / chunk) D: of order L sqrt(L) for a chunk near the root of the length.

    Padding counts nowhere, but rows are counted from the first token, padding or not: padding in front moves them,
    unless it is whole rows.

    Args:
        shape: of the attention; queries and keys are of one sequence.
        form: ``parallel`` writes all weights out, ``chunked`` goes by rows. There is no ``recurrent`` form: the
            summaries of all rows are needed, and their number grows.
        chunk: tokens in a row.

    Attributes:
        query_map, key_map: (H, D, D), Q and K, the identity at first.

    Raises:
        UserError: the form is ``recurrent``, or L is not S.

    Source: Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost", arXiv:2107.05768, section
    4, with rows as regions, and means for summaries.
    """

    def __init__(self, shape: AttentionShape, *, form: Form = "chunked", chunk: int = 64) -> None:
        super().__init__()
        if form == "recurrent":
            raise _no_state()
        require_tokens("chunk", chunk)
        self.shape, self.form, self.chunk = shape, form, chunk
        self.query_map = nn.Parameter(torch.eye(shape.head_dim).repeat(shape.heads, 1, 1))
        self.key_map = nn.Parameter(torch.eye(shape.head_dim).repeat(shape.heads, 1, 1))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if query.shape[-2] != key.shape[-2]:
            raise UserError(
                f"{query.shape[-2]} queries and {key.shape[-2]} keys have no common rows.",
                hint="only self-attention has this form",
            )
        real = real_tokens(key, key_mask)
        queries, keys = (cut(x.to(real.dtype), self.chunk) for x in (query, key))
        values = cut(counted(value, real), self.chunk)
        made = self._attended(queries, keys, values)
        return divided(joined(made, query.shape[-2])).to(value.dtype)

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows, chunk = queries.shape[2], self.chunk
        real = values[..., -1:]
        count = real.sum(-2)
        middle = _mean(queries, real) @ self.query_map.to(queries.dtype)
        summary = _mean(keys, real) @ self.key_map.to(queries.dtype)
        inside = torch.arange(chunk, device=queries.device)
        row = torch.arange(rows, device=queries.device)
        is_own = real.transpose(-1, -2) > 0
        is_other = (count > 0).transpose(-1, -2)[:, :, None]
        if self.shape.is_causal:
            is_own = is_own & (inside[:, None] >= inside)
            is_other = is_other & (row[:, None] > row)[:, None]
        else:
            is_other = is_other & (row[:, None] != row)[:, None]
        direct = queries @ keys.transpose(-1, -2) * self.shape.scale
        mass = count.clamp(min=1.0).log().transpose(-1, -2)[:, :, None]
        by_row = queries @ summary.transpose(-1, -2)[:, :, None] * self.shape.scale + mass
        scores = torch.cat([direct, by_row], -1)
        lead = (*scores.shape[:3], chunk)
        seen = torch.cat([is_own.expand(*lead, chunk), is_other.expand(*lead, rows)], -1)
        weights = peaked(scores, seen)
        own, other = weights[..., :chunk], weights[..., chunk:]
        # (B, H, rows, 1, chunk): what is seen inside of a row, whoever looks.
        fixed = peaked((middle[..., None, :] @ keys.transpose(-1, -2)) * self.shape.scale, real.transpose(-1, -2) > 0)
        if self.form == "chunked":
            pooled = divided(fixed @ values).squeeze(-2)
            return own @ values + other @ counted(pooled, (count > 0).to(pooled.dtype))[:, :, None]
        inner = fixed / fixed.sum(-1, keepdim=True).clamp(min=1e-30)
        everything = other[..., None] * inner.transpose(2, 3)[:, :, None]
        placed = torch.where((row[:, None] == row)[:, None, :, None], own[..., None, :], everything)
        tokens = rows * chunk
        batch, heads = queries.shape[:2]
        flat = placed.reshape(batch, heads, tokens, tokens) @ values.reshape(batch, heads, tokens, values.shape[-1])
        return flat.reshape(batch, heads, rows, chunk, values.shape[-1])

    def initial_state(self, like: Tensor) -> State:
        raise _no_state()

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        raise _no_state()


def _no_state() -> UserError:
    return UserError(
        "Combiner attention does not go token by token.",
        why="It needs a summary of every row before, and their number grows with the sequence.",
        hint='form="chunked", or another kind of attention',
    )


def _mean(x: Tensor, real: Tensor) -> Tensor:
    """(B, H, rows, D) of (B, H, rows, chunk, D), over what is real."""
    return (x * real).sum(-2) / real.sum(-2).clamp(min=1.0)
