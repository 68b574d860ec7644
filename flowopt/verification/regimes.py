"""Regimes: kinds of numbers that wrong rewrites get wrong."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

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
