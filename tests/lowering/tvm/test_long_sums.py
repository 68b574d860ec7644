"""Sums over many numbers keep float32's precision: one number added after the other would lose it."""

import torch
from torch import Tensor
from torch.nn import functional

from tests.lowering.tvm.compare import captured
from tests.lowering.tvm.small_library import run_scheduled


def everything(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {
        "mean": x.mean(),
        "sum": x.sum(),
        "rows": x.sum(1),
        "columns": x.T.sum(0),
        "variance": x.var(1),
        "group_norm": functional.group_norm(y, 2),
    }


def test_long_sums_are_as_near_to_float64_as_short_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1 << 20, generator=generator) + 5
    y = torch.randn(1, 4, 128, 128, generator=generator) + 30
    program = captured(everything, x, y)
    found = run_scheduled(program, dict(zip((i.name for i in program.inputs), (x, y), strict=True)))
    for name, exact in everything(x.double(), y.double()).items():
        assert (found[name] - exact).abs().max() < 4e-6 * exact.abs().max(), name
