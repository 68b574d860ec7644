"""One small library, compiled once for all tests that only look at it."""

import atexit
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.optimize import OptimizeResult, optimize
from tests.zoo.models import randomise


class Block(nn.Module):
    """A layer norm, a linear layer, and two things that come back as they were: an input and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.linear = nn.Linear(24, 37)
        self.offset = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = nn.functional.gelu(self.linear(self.norm(x))) * mask[:, None]
        return {"y": y, "same": x, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class Compiled:
    """The program, its module, and what ``optimize`` made of it."""

    module: Block
    program: Program
    result: OptimizeResult
    folder: Path


def block() -> tuple[Block, Program]:
    """The module with random weights, captured with a free batch."""
    module = Block()
    randomise(module, seed=3)
    module.eval()
    inputs = (torch.randn(3, 24), torch.tensor([True, False, True]))
    dynamic = {"x": {0: "batch"}, "mask": {0: "batch"}}
    return module, capture(module, inputs, dynamic=dynamic, dims={"batch": (1, 64)})


@functools.cache
def compiled() -> Compiled:
    """The library, in a folder that is gone when the tests end."""
    scratch = tempfile.TemporaryDirectory(prefix="flowopt-tests-")
    atexit.register(scratch.cleanup)
    module, program = block()
    folder = Path(scratch.name) / "block.flowopt"
    return Compiled(module, program, optimize(program, target="tvm", folder=folder), folder)
