from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.ir.text import operator_census
from flowopt.passes.cleanup.eliminate_no_ops import EliminateNoOps
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.programs import Written, normal, undecomposed

FREE: dict[str, Any] = {"dynamic": {"x": {0: "batch", 1: "sequence"}}, "dims": {"batch": (3, 8), "sequence": (3, 16)}}


def program_of(forward: Callable[[Tensor], Any], x: Tensor | None = None, **options: Any) -> Program:
    example = normal(4, 5, 6) if x is None else x
    return capture(Written(lambda m, x: forward(x)).eval(), (example,), **options)


NO_OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a cast to its own dtype": lambda x: torch.ops.aten._to_copy.default(x.sin(), dtype=torch.float32),
    "alias": lambda x: torch.ops.aten.alias.default(x.sin()),
    "a slice of everything": lambda x: torch.ops.aten.slice.Tensor(x.sin(), 1, 0, 2**63 - 1),
    "a slice of a fixed axis": lambda x: torch.ops.aten.slice.Tensor(x.sin(), 2, 0, 6),
    "a view of the same shape": lambda x: torch.ops.aten.view.default(x.sin(), [x.shape[0], x.shape[1], 6]),
    "an expansion of nothing": lambda x: torch.ops.aten.expand.default(x.sin(), [-1, -1, 6]),
    "a squeeze of a long axis": lambda x: torch.ops.aten.squeeze.dim(x.sin(), 2),
    "squeezes of long axes": lambda x: torch.ops.aten.squeeze.dims(x.sin(), [1, 2]),
    "a permutation that moves nothing": lambda x: torch.ops.aten.permute.default(x.sin(), [0, 1, -1]),
    "a transpose of an axis with itself": lambda x: torch.ops.aten.transpose.int(x.sin(), 2, -1),
    "two transposes": lambda x: x.sin().transpose(0, 2).transpose(-1, 0),
    "two permutations": lambda x: x.sin().permute(1, 2, 0).permute(2, 0, 1),
    "a product with one": lambda x: x.sin() * 1.0,
    "a quotient by one": lambda x: x.sin() / 1,
    "a transpose that a permutation undoes": lambda x: x.sin().transpose(0, 1).permute(1, 0, 2),
}
# What they leave: the sine, the product, and the inner half of a pair that nobody reads any more.
LEFT = {"aten.sin": 1, "aten.mul.Tensor": 1}


@pytest.mark.parametrize("name", NO_OPS)
def test_it_goes(name: str) -> None:
    forward = NO_OPS[name]
    for options in ({}, FREE):
        program = program_of(lambda x: forward(x) * 2.0, **options)
        run = run_passes(program, [EliminateNoOps(), EliminateNoOps()], [VerifyPasses()])
        assert run.records[0].outcome == "kept", (name, run.records[0].reason)
        left = {k: n for k, n in operator_census(run.program.graph).items() if k != "aten.sym_size.int"}
        assert left == LEFT
        assert not run.records[1].anchors


EFFECTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a cast": lambda x: x.sin().double().float(),
    "a slice": lambda x: torch.ops.aten.slice.Tensor(x.sin(), 1, 1, 2**63 - 1),
    "a slice in steps": lambda x: torch.ops.aten.slice.Tensor(x.sin(), 2, 0, 2**63 - 1, 2),
    "a squeeze": lambda x: torch.ops.aten.squeeze.dim(x.sin().unsqueeze(1), 1),
    "a clone": lambda x: x.sin().clone(),
    "a product with minus one": lambda x: x.sin() * -1.0,
    "a sum with zero, which turns minus zero into zero": lambda x: x.sin() + 0.0,
    "a product of whole numbers that gives floating ones": lambda x: x.sin().int() / 1,
    "another shape": lambda x: x.sin().reshape(x.shape[0], -1),
    "another order": lambda x: x.sin().permute(1, 0, 2).permute(1, 2, 0),
    "a transpose of two axes of one size": lambda x: x.sin().transpose(0, 1),
    "a flip": lambda x: x.sin().flip(0),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_does_something_is_no_site(name: str) -> None:
    program = program_of(lambda x: EFFECTS[name](x) * 2.0, normal(5, 5, 6), **FREE)
    assert run_passes(program, [EliminateNoOps()]).records[0].anchors == 0


def test_dropout_of_an_archive_that_kept_it() -> None:
    """A bare export keeps it; flowopt's own capture does not."""
    module = Written(lambda m, x: m.drop(x.sin()) * 2.0, drop=nn.Dropout(0.3)).eval()
    program = undecomposed(module, normal(4, 5, 6))
    assert operator_census(program.graph)["aten.dropout"] == 1
    run = run_passes(program, [EliminateNoOps()], [VerifyPasses()])
    assert run.records[0].outcome == "kept" and operator_census(run.program.graph) == LEFT


def test_a_rotation_done_twice_is_no_identity() -> None:
    program = program_of(lambda x: x.sin().permute(1, 2, 0).permute(1, 2, 0) * 2.0, normal(4, 4, 4))
    assert run_passes(program, [EliminateNoOps()]).records[0].anchors == 0


def test_bits_of_negative_zero_and_nan_stay() -> None:
    program = program_of(lambda x: torch.ops.aten.alias.default(x * 1.0).sin())
    (record,) = run_passes(program, [EliminateNoOps()], [VerifyPasses(level="full")]).records
    assert record.outcome == "kept", record.reason


def test_the_callers_memory_stays_the_callers() -> None:
    def alias(x: Tensor) -> Tensor:
        return torch.ops.aten._to_copy.default(x, dtype=torch.float32)

    assert_refuses(EliminateNoOps(), program_of(alias), code="graph-output")
    twice = program_of(lambda x: [(y := x.sin()), torch.ops.aten._to_copy.default(y, dtype=torch.float32)])
    assert_refuses(EliminateNoOps(), twice, code="graph-output")


def test_an_output_of_its_own_may_be_what_was_copied() -> None:
    program = program_of(lambda x: torch.ops.aten._to_copy.default(x.sin(), dtype=torch.float32))
    run = run_passes(program, [EliminateNoOps()], [VerifyPasses()])
    assert run.records[0].outcome == "kept" and operator_census(run.program.graph) == {"aten.sin": 1}


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[0] > 0, "empty")
        torch._check(x.shape[1] > 0)
        return x.sin()


def test_assertions_are_gone_before_it_starts() -> None:
    program = capture(Asserting().eval(), (normal(4, 5, 6),), **FREE)
    run = run_passes(program, [EliminateNoOps()])
    assert not [name for name in operator_census(run.program.graph) if "assert" in name]
