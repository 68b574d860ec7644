"""A small model with two groups of layers, and choices for it."""

from typing import Any

import torch
from torch import Tensor, nn

from flowopt.analysis.linear_group import LinearGroup
from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.tuned import Tuned, structure_digest
from tests.zoo.models import randomise

PASSES = "merge-parallel-linears"


class Gated(nn.Module):
    """Two layers of the input, and three of their product."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, width, bias=False), nn.Linear(6, width, bias=False)
        self.last = nn.ModuleList(nn.Linear(width, n) for n in (2, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.gate(x).tanh() * self.up(x)
        return torch.cat([layer(inner) for layer in self.last], -1)


def gated(seed: int = 0, width: int = 4, rows: int = 5) -> dict[str, Any]:
    module = Gated(width)
    randomise(module, seed)
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return {"module": module.eval(), "args": (x,), "dynamic": {"x": {0: "rows"}}, "dims": {"rows": (1, 64)}}


def program(**options: int) -> Program:
    made = gated(**options)
    return capture(made["module"], made["args"], dynamic=made["dynamic"], dims=made["dims"])


def choices(of: Program, first: bool, second: bool, rows: int = 5) -> Tuned:
    """Whether the two layers of the input and the three behind them are to be merged."""
    merges = (
        MeasuredMerge("linear", LinearGroup((rows, 6), (4, 4), torch.float32, has_bias=False), first, 1.125),
        MeasuredMerge("linear_2", LinearGroup((rows, 4), (2, 3, 1), torch.float32, has_bias=True), second, 0.75),
    )
    return Tuned(structure_digest(of), "cpu", "onnxruntime", "1.0", 2, merges)
