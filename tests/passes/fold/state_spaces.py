"""State space layers in the spellings that models have, with an FFT convolution of their own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowopt.ops.ssm import S4D, Discretization
from tests.ops.ssm.random_s4d import random_s4d
from tests.passes.programs import Written, normal

CHANNELS, STATES = 4, 6


def layer(*, discretization: Discretization = "zoh", seed: int = 0) -> S4D:
    """As the official code writes it: (B, H, L), kernel in complex64, transforms of twice the length, a skip."""
    return random_s4d(CHANNELS, STATES, discretization=discretization, seed=seed).float()


def inputs(length: int, *, batch: int = 2, channels: int = CHANNELS) -> Tensor:
    return normal(batch, channels, length)


def fft(u: Tensor, kernel: Tensor, n: int, dim: int = -1) -> Tensor:
    """The whole circular convolution."""
    return torch.fft.irfft(torch.fft.rfft(u, n=n, dim=dim) * torch.fft.rfft(kernel, n=n, dim=dim), n=n, dim=dim)


def written(forward: Callable[..., object], *, taps: int = 12, **parts: Tensor | nn.Module) -> Written:
    """A module with a stored kernel ``K`` that is no sum of powers, a skip ``D``, poles ``p`` and gains ``c``."""
    generator = torch.Generator().manual_seed(3)
    turned = torch.complex(-torch.rand(CHANNELS, STATES, generator=generator), 3 * normal(CHANNELS, STATES, seed=1))
    stored: dict[str, Tensor | nn.Module] = {
        "K": normal(CHANNELS, taps, seed=1),
        "D": normal(CHANNELS, seed=2),
        "p": torch.view_as_real(turned),
        "c": normal(CHANNELS, STATES, 2, seed=4),
    }
    return Written(forward, **(stored | parts)).eval()
