"""Patterns of integers inside a range: ids, indices, and others."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from flowopt.analysis.input_roles import Role

IntegerPattern = Literal["random", "lowest", "highest", "edges", "padded", "alike", "named", "wide"]
_WIDEST = 40  # bits: a product with what a hash multiplies by still fits 64


def integers(
    pattern: IntegerPattern,
    role: Role,
    shape: tuple[int, ...],
    generator: Generator,
    *,
    named: Sequence[int] = (),
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Integers that a role allows; int64.

    ``edges`` alternates between the lowest and the highest. ``padded`` ends every row with the id of padding, the first
    row being nothing else; it is the lowest id where the model declares none. ``alike`` is one number everywhere,
    ``named`` takes about every second from ``named`` and those beside it. Where they index nothing, ``wide`` leaves the
    role's range for whatever the dtype holds, of either sign and of every magnitude up to 2^40.
    """
    count = int(torch.Size(shape).numel())
    lowest, highest = role.low, max(role.high - 1, role.low)
    if pattern == "lowest":
        return torch.full(shape, lowest)
    if pattern == "highest":
        return torch.full(shape, highest)
    if pattern == "edges":
        return torch.tensor([lowest, highest])[torch.arange(count) % 2].reshape(shape)
    if pattern == "alike":
        return torch.randint(lowest, highest + 1, (), generator=generator).expand(shape).clone()
    if pattern == "wide" and not role.is_index:
        return _wide(shape, generator, dtype)
    made = torch.randint(lowest, highest + 1, shape, generator=generator)
    if pattern == "named":
        return _mixed_with(
            made, [n for one in named for n in (one - 1, one, one + 1) if lowest <= n <= highest], generator
        )
    if pattern == "padded" and shape and count > 0:
        rows = made.reshape(-1, shape[-1])
        lengths = torch.arange(rows.shape[0]).unsqueeze(-1) % shape[-1]
        padding = lowest if role.padding is None else role.padding
        made = torch.where(torch.arange(shape[-1]) < lengths, rows, padding).reshape(shape)
    return made


def _mixed_with(made: Tensor, named: Sequence[int], generator: Generator) -> Tensor:
    if not named:
        return made
    chosen = torch.tensor(named)[torch.randint(len(named), made.shape, generator=generator)]
    return torch.where(torch.rand(made.shape, generator=generator) < 0.5, chosen, made)


def _wide(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    bits = min(_WIDEST, limits.bits - 1)
    magnitude = (2.0 ** (bits * torch.rand(shape, generator=generator, dtype=torch.float64))).to(torch.int64)
    sign = 2 * torch.randint(0, 2, shape, generator=generator) - 1 if limits.min < 0 else 1
    return (magnitude * sign).clamp(limits.min, limits.max)
