"""Attentions of every kind of mask and bias, for tests of what finds them."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.passes.programs import normal

attend = cast(Callable[..., Tensor], scaled_dot_product_attention)
HEADS, WIDTH = 4, 8
BATCH, LENGTH = 2, 6
Q, K, V = (normal(BATCH, HEADS, LENGTH, WIDTH, seed=seed) for seed in range(3))
IDS = torch.tensor([[5, 3, 9, 2, 0, 0], [4, 1, 7, 8, 2, 6]])
# Tokens of one sample are real up to a place; those of the other from a place on.
REAL = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
FREE = {"batch": (1, None), "length": (1, 64)}


class Attends(nn.Module):
    """Attention of the inputs, as a function of the module's parts, queries, keys, values and another input."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, more: Tensor | None = None) -> Tensor:
        return self.function(self, q, k, v) if more is None else self.function(self, q, k, v, more)


def program_of(
    function: Callable[..., Tensor],
    *more: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor] = (Q, K, V),
    is_free: bool = False,
    dims: Mapping[str, tuple[int, int | None]] | None = None,
    **parts: Any,
) -> Program:
    """The program of a function; with ``is_free`` batch and length are free, of another input in its first two axes."""
    dynamic: dict[str, Any] = {name: {0: "batch", 2: "length"} for name in "qkv"}
    if more:
        dynamic["more"] = {axis: name for axis, name in enumerate(("batch", "length")) if more[0].dim() > axis}
    given: dict[str, Any] = {"dynamic": dynamic, "dims": dims or FREE} if is_free else {}
    return capture(Attends(function, **parts).eval(), (*inputs, *more), **given)


def places(q: Tensor, k: Tensor) -> Tensor:
    """How far each key lies behind each query, (L, S)."""
    return torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])[None]


def written(scores: Tensor, value: Tensor) -> Tensor:
    """The end of attention that is written out."""
    return scores.softmax(-1) @ value
