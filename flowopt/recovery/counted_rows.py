"""Which vectors of a value are fitted to: neither padding nor massive activations."""

import torch
from torch import Tensor

from flowopt.recovery.padding import padding_of


def rows_of(value: Tensor, channel_axis: int = -1) -> Tensor:
    """(vectors, channels): the vectors of a value, in order."""
    return value.movedim(channel_axis, -1).flatten(0, -2) if value.dim() > 1 else value.unsqueeze(0)


def counted_rows(value: Tensor, masked: Tensor | None, massive: float, channel_axis: int = -1) -> Tensor:
    """(vectors,), True for those that count.

    Args:
        value: any shape; its vectors are counted in the order of ``rows_of``.
        masked: (batch, tokens), True where a token is padding; None where no padding is known.
        massive: vectors of so many times the median length do not count: one sink token would outweigh all others.
        channel_axis: of the vectors.
    """
    lengths = rows_of(value, channel_axis).float().norm(dim=1)
    counted = torch.ones_like(lengths, dtype=torch.bool)
    padding = padding_of(value, masked, channel_axis)
    if padding is not None:
        counted = ~padding.reshape(-1)
    real = lengths[counted]
    return counted & (lengths <= massive * real.median()) if len(real) else counted
