"""The first execution of a program of unknown origin."""

import contextlib

import torch
from torch import Tensor

from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program


def run_once(program: Program) -> None:
    """Run a program on zeros of the captured sizes. What it raises is the model's own affair: only a crash counts."""
    sizes = {d.name: d.traced for d in program.dims}
    inputs: dict[str, Tensor] = {}
    for one in program.inputs:
        value = recorded_tensor(program.node(one.name))
        assert value is not None
        inputs[one.name] = torch.zeros(program.concrete_shape(value, sizes), dtype=one.dtype)
    with contextlib.suppress(IndexError, ValueError, AssertionError), torch.no_grad():
        program.run_named(inputs)
