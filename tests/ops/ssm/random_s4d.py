"""S4D layers with parameters that training might leave, in float64."""

import math

import torch

from flowopt.ops.ssm import S4D, Discretization


def random_s4d(channels: int, states: int, *, discretization: Discretization = "zoh", seed: int = 0) -> S4D:
    """Slow and fast decays, frequencies off the initial grid, a channel that reads nothing, a negative skip."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layer = S4D(channels, states, discretization=discretization, dtype=torch.float64).eval()
    with torch.no_grad():
        layer.log_dt.uniform_(math.log(1e-4), math.log(0.5), generator=generator)
        layer.log_A_real.copy_(normal(channels, states // 2) - 0.7)
        layer.A_imag.add_(normal(channels, states // 2))
        layer.C.copy_(normal(channels, states // 2, 2))
        layer.D.copy_(normal(channels))
        layer.C[0] = 0.0
        layer.D[-1] = -layer.D[-1].abs()
    return layer
