"""Bits that differ are those that differ when both programs run alike."""

import torch

from flowopt.program.program import Program
from flowopt.verification.inputs.cases import Case
from flowopt.verification.track import Rewritten, _differing_bits
from tests.verification.substitute import captured

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def programs() -> tuple[Program, Program]:
    """A program, and one that gives other bits: the sine of the next number above."""
    program = captured(torch.sin)
    moved = program.copy()
    weight = str(next(iter(moved.graph.find_nodes(op="get_attr"))).target)
    moved.tensors[weight] = torch.nextafter(moved.tensors[weight], torch.full_like(moved.tensors[weight], torch.inf))
    return program, moved


def differing(before: Program, after: Program) -> int:
    case = Case("traced", {"batch": 2, "sequence": 3}, {"x": X})
    (name,) = before.run_named(case.inputs)
    given = torch.zeros(3), torch.ones(3)
    done = Rewritten(before, after, before, after)
    return len(_differing_bits(name, "traced", *given, (case, done)))


def test_programs_that_agree_when_they_run_alike_have_no_finding() -> None:
    program, _ = programs()
    assert differing(program, program.copy()) == 0


def test_programs_that_differ_by_one_unit_in_the_last_place_have_one() -> None:
    assert differing(*programs()) == 1
