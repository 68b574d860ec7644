"""Patterns of integers inside a range: ids, indices, and others."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from flowopt.analysis.input_roles import Kind, Role

IntegerPattern = Literal["random", "lowest", "highest", "edges", "padded", "alike", "named", "wide"]
_MOVED = 0.2  # of the numbers of one input beside those of another
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
    ``named`` puts each number of ``named``, and those beside it, into every second place. Where they index nothing,
    both may leave the role's range, and ``wide`` holds whatever the dtype does: of either sign and of every magnitude
    up to 2^40, with neighbours, and often equal from input to input of a case.
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
    if pattern == "named" and not role.is_index and role.kind is Kind.INTEGERS:
        limits = torch.iinfo(dtype)
        lowest, highest = limits.min, limits.max
    if pattern == "named":
        beside = [*named, *(n - 1 for n in named), *(n + 1 for n in named)]
        allowed = [n for n in beside if lowest <= n <= highest]
        return mixed_with(made, torch.tensor(allowed, dtype=made.dtype), generator)
    if pattern == "padded" and shape and count > 0:
        rows = made.reshape(-1, shape[-1])
        lengths = torch.arange(rows.shape[0]).unsqueeze(-1) % shape[-1]
        padding = lowest if role.padding is None else role.padding
        made = torch.where(torch.arange(shape[-1]) < lengths, rows, padding).reshape(shape)
    return made


def mixed_with(made: Tensor, named: Tensor, generator: Generator) -> Tensor:
    """``made`` with every second element, at random places, taken from ``named`` in turn: each occurs where it can."""
    if named.numel() == 0:
        return made
    places = torch.randperm(made.numel(), generator=generator)[: made.numel() // 2 + made.numel() % 2]
    mixed = made.flatten().clone()
    mixed[places] = named[torch.arange(len(places)) % named.numel()]
    return mixed.reshape(made.shape)


def _wide(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    bits = min(_WIDEST, limits.bits - 1)
    # The same for all inputs of a case, whatever they have drawn so far.
    common = torch.Generator().manual_seed(generator.initial_seed())
    count = torch.Size(shape).numel()
    pairs = -(-count // 2)
    # Magnitudes spread evenly over all powers of two, each beside a number that is 1 larger (float32 cannot tell the
    # large ones apart), equal, or the same in its lower half.
    rising = bits * (torch.arange(pairs) + torch.rand(pairs, generator=common, dtype=torch.float64)) / max(pairs, 1)
    gaps = torch.tensor([1, 0, 2**32 if bits > 32 else 1])[torch.arange(pairs) % 3]
    first = (2.0**rising).to(torch.int64)
    sign = 2 * torch.randint(0, 2, (pairs, 1), generator=common) - 1 if limits.min < 0 else 1
    value = torch.stack([first, first + gaps], 1) * sign
    value = value[torch.randperm(pairs, generator=common)].flatten()[:count]
    moves = gaps[torch.randint(max(pairs, 1), (count,), generator=generator)] if pairs else value
    value = torch.where(torch.rand(count, generator=generator) < _MOVED, value + moves, value)
    return value.clamp(limits.min, limits.max).reshape(shape)
