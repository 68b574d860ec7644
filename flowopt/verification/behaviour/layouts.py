"""The same values elsewhere in memory: what a caller may hand over.

A kernel that reads memory by itself must ask for strides and offsets; one that does not reads other numbers. The
memory between a tensor's elements is filled with other ones: NaN for floats, values of the tensor for the rest, so
that no index leaves its range.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]
_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


def strided(value: Tensor) -> Tensor:
    """Every second element of a larger tensor, along the last axis."""
    if value.dim() == 0 or value.numel() == 0:
        return value
    larger = torch.stack((_other(value), _other(value)), dim=-1).flatten(-2)
    view = larger[..., ::2]
    view.copy_(value)
    return view


def at_offset(value: Tensor) -> Tensor:
    """Contiguous, but not at the beginning of its storage."""
    if value.numel() == 0:
        return value
    flat = value.reshape(-1)
    larger = torch.cat((_other(flat)[:1], flat))
    return larger[1:].view(value.shape)


def transposed(value: Tensor) -> Tensor:
    """Channels last for images and volumes, else with the last two axes exchanged in memory."""
    if value.dim() in _CHANNELS_LAST:
        return value.clone(memory_format=_CHANNELS_LAST[value.dim()])
    if value.dim() < 2:
        return value
    return value.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2)


def first_row(value: Tensor) -> Tensor:
    """The first row in the place of every row, with stride 0: one row in memory."""
    return value[:1].expand(value.shape) if value.dim() and value.shape[0] else value


def lies_elsewhere(value: Tensor, other: Tensor) -> bool:
    """True when the second tensor's memory is not laid out like the first one's."""
    return (value.stride(), value.storage_offset()) != (other.stride(), other.storage_offset())


def _other(value: Tensor) -> Tensor:
    """A tensor of the same shape with other values where there are any."""
    if value.dtype is torch.bool:
        return ~value
    if value.is_floating_point() or value.is_complex():
        return torch.full_like(value, torch.nan, memory_format=torch.contiguous_format)
    return value.roll(1)
