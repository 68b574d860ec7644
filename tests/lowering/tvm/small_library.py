"""One small library, compiled once for all tests that only look at it."""

import atexit
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from tvm.support.cc import get_cc

from flowopt.lowering.staging import Staging
from flowopt.lowering.tvm.lower import Compilation, lower_to_tvm
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.runtime.relax_module import open_relax
from flowopt.workflows.optimize import OptimizeResult, optimize
from tests.zoo.models import randomise


class Block(nn.Module):
    """A layer norm, a linear layer, and what no kernel makes: an input, a parameter, a constant, one value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.linear = nn.Linear(24, 37)
        self.offset = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = nn.functional.gelu(self.linear(self.norm(x))) * mask[:, None]
        steps = torch.arange(5)
        return {"y": y, "again": y, "same": x, "offset": self.offset, "zeros": torch.zeros(4), "steps": steps}


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


def require_linker() -> None:
    """Skip the test where no C++ compiler links libraries; nothing else of TVM needs one."""
    if get_cc() is None:
        pytest.skip("no C++ compiler on the PATH to link a library with")


@functools.cache
def compiled() -> Compiled:
    """The library, in a folder that is gone when the tests end."""
    require_linker()
    scratch = tempfile.TemporaryDirectory(prefix="flowopt-tests-")
    atexit.register(scratch.cleanup)
    module, program = block()
    folder = Path(scratch.name) / "block.flowopt"
    return Compiled(module, program, optimize(program, target="tvm", folder=folder), folder)


def run_plain(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The program's outputs by TVM's own kernels."""
    return _run(program, inputs, Compilation(kind="plain"))


def run_scheduled(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The program's outputs by flowopt's kernels."""
    return _run(program, inputs, Compilation())


def _run(program: Program, inputs: Mapping[str, Tensor], wanted: Compilation) -> dict[str, Tensor]:
    require_linker()
    with tempfile.TemporaryDirectory() as scratch, Staging(Path(scratch) / "out") as staging:
        return open_relax(lower_to_tvm(program, staging, wanted).model).run(inputs)
