"""Regimes: kinds of numbers that wrong rewrites get wrong."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from flowopt.ir.float64 import float64_by_default

Regime = Callable[[tuple[int, ...], Generator], Tensor]


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=generator)


def negative(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """All negative: a ReLU that became the identity, a max-pool that pads with zero, a square root of a square."""
    return -3.0 * torch.randn(shape, generator=generator).abs() - 1e-3


def mixed_rows(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Rows (last axis) of scales 1e-6 to 1e3, some far from zero, one constant, one zero: epsilons and cancellation."""
    value = torch.randn(shape, generator=generator)
    if value.dim() == 0 or value.numel() == 0:
        return value
    rows = value.reshape(-1, value.shape[-1])
    scales = 10.0 ** torch.tensor([0.0, -6.0, 3.0, -3.0, 1.0, -1.0])
    rows = rows * scales[torch.arange(rows.shape[0]) % len(scales)].unsqueeze(-1)
    if rows.shape[0] > 2:
        rows[3::5] = 1000.0 * rows[3::5, :1] + rows[3::5]
        rows[1::7] = rows[1::7, :1]
        rows[2::11] = 0.0
    return rows.reshape(shape)


def spikes(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Thirty times larger than normal, with a few outliers; one NaN and one infinity in the first sample.

    The other samples stay finite, so that a leak across the batch shows too.
    """
    value = 30.0 * torch.randn(shape, generator=generator)
    if value.dim() == 0 or value.numel() == 0:
        return value
    flat = value.reshape(value.shape[0], -1)
    flat[:, :: max(flat.shape[1] // 3, 1)] *= 30.0
    flat[0, 0] = float("nan")
    flat[0, -1] = float("inf")
    return value


def large_normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Thirty times larger than normal, finite."""
    return 30.0 * torch.randn(shape, generator=generator)


def uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Between 0 and 1, as pixels are: no clip above 1 shows, everything below does."""
    return torch.rand(shape, generator=generator)


def constant_rows(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Rows (last axis) without variance, and the whole first sample without: where an epsilon is all there is."""
    value = torch.randn(shape, generator=generator)
    if value.dim() == 0 or value.numel() == 0:
        return value
    value = value[..., :1].expand(shape).clone()
    if value.dim() > 1:
        value[0] = value[0].flatten()[0]
    return value


def outliers(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal, with one channel in sixteen a hundred times larger and one number in a hundred a thousand times."""
    value = torch.randn(shape, generator=generator)
    # Channels lie on the last axis, or, in images, on the second.
    for axis in {value.dim() - 1, min(value.dim() - 1, 1)} if value.dim() > 1 else ():
        chosen = torch.randperm(value.shape[axis], generator=generator)[: -(-value.shape[axis] // 16)]
        value.index_copy_(axis, chosen, 100.0 * value.index_select(axis, chosen))
    return torch.where(torch.rand(shape, generator=generator) < 0.01, 1000.0 * value, value)


def offset_rows(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal, each row (last axis) around a number of its own: where an exponential saturates, or a square is large."""
    value = torch.randn(shape, generator=generator)
    if value.dim() == 0 or value.numel() == 0:
        return value
    offsets = torch.tensor([15.0, -15.0, 300.0, -4.0, 60.0, -90.0])
    rows = value.reshape(-1, value.shape[-1])
    return (rows + offsets[torch.arange(rows.shape[0]) % len(offsets)].unsqueeze(-1)).reshape(shape)


def zeros(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Zero everywhere."""
    return torch.zeros(shape)


def negative_zeros(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """-0.0 everywhere: the sign counts in a division and a copysign."""
    return -torch.zeros(shape)


def halves(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Multiples of 1/2 from -8 to 8: ties of a rounding, both sides and the edge of a comparison."""
    return 0.5 * torch.randint(-16, 17, shape, generator=generator)


def one_nan(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal, with one NaN in the first sample."""
    return _with_one(float("nan"), shape, generator)


def one_infinity(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal, with one infinity in the first sample."""
    return _with_one(float("inf"), shape, generator)


def one_negative_infinity(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal, with one negative infinity in the first sample."""
    return _with_one(float("-inf"), shape, generator)


def regimes_of(dtype: torch.dtype) -> dict[str, Regime]:
    """The regimes of level ``full`` by name, ordinary numbers first, for inputs of a floating or complex dtype.

    Magnitudes that the dtype has no room for are the largest, or the smallest, that leave it some.
    """
    limits = torch.finfo(dtype)
    room = limits.max / 8
    return {
        "normal": normal,
        "uniform": uniform,
        "wide-rows": partial(_wide_rows, largest=min(1e6, room)),
        "outliers": outliers,
        "negative": negative,
        "large": large_normal,
        "huge": partial(_scaled, scale=min(1e4, room)),
        "constant-rows": constant_rows,
        "offset-rows": offset_rows,
        # Eight steps of the dtype at the offset, so that the noise is more than rounding.
        "offset-noise": partial(_offset_noise, offset=(top := min(1e4, room)), noise=max(1e-2, 8 * limits.eps * top)),
        "zeros": zeros,
        "negative-zeros": negative_zeros,
        "tiny": partial(_scaled, scale=max(1e-30, 4 * limits.smallest_normal)),
        "subnormals": partial(_subnormals, smallest_normal=limits.smallest_normal),
        "halves": halves,
        "nan": one_nan,
        "infinity": one_infinity,
        "negative-infinity": one_negative_infinity,
    }


def fitted(name: str, shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    """Numbers of a named regime of level ``full`` in their dtype: finite ones stay finite.

    Complex ones have both parts from the regime, and numbers in float64 have all its digits.
    """
    regime, limits = regimes_of(dtype)[name], torch.finfo(dtype)
    with float64_by_default(limits.bits == 64):
        parts = [regime(shape, generator) for _ in range(2 if dtype.is_complex else 1)]
    bounded = [torch.where(part.isinf(), part, part.clamp(limits.min, limits.max)) for part in parts]
    made = torch.complex(*bounded) if dtype.is_complex else bounded[0]
    return made.to(dtype)


def _scaled(shape: tuple[int, ...], generator: Generator, scale: float) -> Tensor:
    return scale * torch.randn(shape, generator=generator)


def _wide_rows(shape: tuple[int, ...], generator: Generator, largest: float) -> Tensor:
    """Rows (last axis) of scales 1e-6 to 1e6."""
    value = torch.randn(shape, generator=generator)
    if value.dim() == 0 or value.numel() == 0:
        return value
    scales = torch.tensor([1.0, 1e-6, largest, 1e-3, math.sqrt(largest), 1e-1])
    rows = value.reshape(-1, value.shape[-1])
    return (rows * scales[torch.arange(rows.shape[0]) % len(scales)].unsqueeze(-1)).reshape(shape)


def _offset_noise(shape: tuple[int, ...], generator: Generator, offset: float, noise: float) -> Tensor:
    """Small differences between large numbers: what a variance in one pass cancels away."""
    return offset + noise * torch.randn(shape, generator=generator)


def _subnormals(shape: tuple[int, ...], generator: Generator, smallest_normal: float) -> Tensor:
    """Numbers of either sign that a processor may flush to zero."""
    drawn = 2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0
    # Below 0.9, so that rounding to the dtype makes none of them normal.
    return 0.9 * smallest_normal * drawn


def _with_one(special: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    value = torch.randn(shape, generator=generator)
    if value.numel() > 0:
        sample = value.flatten()[: value[0].numel() if value.dim() else 1]
        sample[int(torch.randint(sample.numel(), (), generator=generator))] = special
    return value
