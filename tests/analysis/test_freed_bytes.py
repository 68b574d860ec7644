from typing import Any

import torch
from torch import Tensor, nn

from flowopt.analysis.freed_bytes import freed_bytes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.passes.programs import Written, normal


def freed(program: Program, *names: str) -> int:
    return freed_bytes(program.graph, program.tensors, {program.node(name) for name in names})


def program_of(forward: Any, **parts: nn.Module | Tensor) -> Program:
    return capture(Written(forward, **parts).eval(), (normal(3, 4),))


def test_a_tensor_goes_with_its_last_reader() -> None:
    program = program_of(lambda m, x: (x * m.gain).exp() + x.sub(m.gain), gain=nn.Parameter(normal(4)))
    assert freed(program, "mul") == 0
    assert freed(program, "mul", "sub") == 16


def test_two_names_of_one_storage_go_together() -> None:
    both = torch.zeros(2, 4)
    program = program_of(lambda m, x: x * m.first + x.sub(m.second), first=both[0], second=both[1])
    assert len(program.tensors) == 2
    assert freed(program, "mul") == 0
    assert freed(program, "mul", "sub") == 32
