"""A norm's training iterations beside the same iterations by hand."""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from tests.ops.power_by_hand import Rows


class ByHand(Protocol):
    """One norm by hand: (y, dx, dweight, dbias) of an iteration."""

    def step(self, rows: Rows, gradients: Rows, padding: list[bool]) -> tuple[Rows, Rows, list[float], list[float]]: ...


def largest_difference(norm: nn.Module, by_hand: ByHand, batches: Iterable[tuple[Tensor, Tensor | None]]) -> float:
    """Largest relative difference of y, dx, dweight and dbias over iterations on (tokens, channels) with masks."""
    generator = torch.Generator().manual_seed(5)
    largest = 0.0
    for x, pad_mask in batches:
        x = x.clone().requires_grad_()
        gradient = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        norm.zero_grad()
        y = norm(x, pad_mask)
        y.backward(gradient)
        padding = [False] * len(x) if pad_mask is None else pad_mask.tolist()
        expected = by_hand.step(x.tolist(), gradient.tolist(), padding)
        for found, wanted in zip((y, x.grad, norm.weight.grad, norm.bias.grad), expected, strict=True):
            reference = torch.tensor(wanted, dtype=x.dtype)
            difference = ((found - reference).abs().max() / reference.abs().max().clamp(min=1)).item()
            # A NaN would lose every comparison.
            largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def prints_as(found: float, printed: str, decimals: int = 5) -> bool:
    """Whether a number, rounded or cut to some decimals, is the printed one: 4.2121451 was printed as 4.21214."""
    unit = 10.0**decimals
    return round(float(printed) * unit) in (round(found * unit), math.floor(found * unit))


def dead_channel_problems(norm: nn.Module) -> list[str]:
    """What is not finite in 200 training iterations of a norm of three channels, the second of which is always 0."""
    generator = torch.Generator().manual_seed(6)
    problems = []
    for iteration in range(1, 201):
        x = torch.randn(5, 3, generator=generator)
        x[:, 1] = 0
        x.requires_grad_()
        y = norm(x)
        y.square().sum().backward()
        tensors = {"y": y, "dx": x.grad} | dict(norm.named_buffers())
        problems += [f"{name} at {iteration}" for name, value in tensors.items() if not value.isfinite().all()]
    return problems
