"""The mean of the values: what any attention that has learnt nothing comes down to."""

from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State
from flowopt.ops.attention.require_tokens import require_tokens


@final
class MeanAttention(LinearForm):
    """Every query gets the mean of the values that it sees; the yardstick of every stand-in.

    Args:
        shape: of the attention.
        form, chunk: all forms are the same prefix sum here.
    """

    def __init__(self, shape: AttentionShape, *, form: Form = "chunked", chunk: int = 64) -> None:
        super().__init__()
        require_tokens("chunk", chunk)
        self.shape, self.form, self.chunk = shape, form, chunk

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        precise = torch.promote_types(value.dtype, torch.float32)
        seen = torch.ones_like(value[..., :1], dtype=precise)
        if key_mask is not None:
            seen = seen * key_mask.to(precise).transpose(-1, -2)
        weighed = value.to(precise) * seen
        if self.shape.is_causal:
            total, count = weighed.cumsum(-2), seen.cumsum(-2)
        else:
            total, count = weighed.sum(-2, keepdim=True), seen.sum(-2, keepdim=True)
            total = total.expand(*value.shape[:2], query.shape[-2], value.shape[-1])
        return (total / count.clamp(min=1.0)).to(value.dtype)

    def initial_state(self, like: Tensor) -> State:
        if not self.shape.is_causal:
            raise UserError("attention to all tokens has no state", hint="only causal attention goes token by token")
        precise = torch.promote_types(like.dtype, torch.float32)
        batch, heads = like.shape[:2]
        total = torch.zeros(batch, heads, 1, self.shape.value_dim, dtype=precise, device=like.device)
        return total, torch.zeros(batch, heads, 1, 1, dtype=precise, device=like.device)

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        total, count = state[0] + value.to(state[0].dtype), state[1] + 1
        return (total / count).to(value.dtype), (total, count)
