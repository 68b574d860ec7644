import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.ir.text import operator_census
from flowopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.programs import Written, normal, randomised

CSE = EliminateCommonSubexpressions


def program_of(forward: Callable[..., Any], *inputs: Tensor, **options: Any) -> Program:
    parts = options.pop("parts", {})
    return capture(Written(forward, **parts).eval(), inputs or (normal(3, 4),), **options)


def test_two_equal_calls_become_one() -> None:
    program = program_of(lambda m, x: x.sin() * 2.0 + x.sin())
    run = assert_rewrites(CSE(), program, before={"aten.sin": 2}, after={"aten.sin": 1}, max_ulp=0)
    assert run.records[0].applied[0].summary == "the same as sin"


def test_chains_of_equal_calls_become_one() -> None:
    program = program_of(lambda m, x: (x.sin().exp() + 1.0) * 2.0 + (x.sin().exp() + 1.0))
    after = {"aten.sin": 1, "aten.exp": 1, "aten.add.Tensor": 2}
    assert_rewrites(CSE(), program, before={"aten.sin": 2, "aten.exp": 2, "aten.add.Tensor": 3}, after=after, max_ulp=0)


def test_what_reads_stored_tensors() -> None:
    gain = torch.nn.Parameter(normal(4, seed=3))
    program = program_of(lambda m, x: x * m.gain.exp() + x.sin() * m.gain.exp(), parts={"gain": gain})
    assert_rewrites(CSE(), program, before={"aten.exp": 2}, after={"aten.exp": 1}, max_ulp=0)


def test_all_results_of_an_operator() -> None:
    program = program_of(lambda m, x: x.topk(2).values + x.topk(2).values + x.topk(2).indices)
    run = assert_rewrites(CSE(), program, before={"aten.topk": 3}, after={"aten.topk": 1}, max_ulp=0)
    assert len(run.program.graph.find_nodes(op="call_function", target=operator.getitem)) == 2


def test_sizes_are_asked_and_computed_once() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 2, 2) + x.sin().reshape(x.shape[0] * 2, 2)

    program = program_of(forward, dynamic={"x": {0: "rows"}}, dims={"rows": (1, 9)})
    run = run_passes(program, [CSE()], [VerifyPasses()])
    assert run.records[0].outcome in ("kept", "unchanged"), run.records[0].reason
    census = operator_census(run.program.graph)
    assert census["aten.sym_size.int"] == 1 and census["mul"] == 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x.sin() + x.cos(),
        lambda m, x: x.add(0.0) * x.add(-0.0),
        lambda m, x: x.sum(0) + x.sum(1)[:3].sum(),
        lambda m, x: x.sub(m.a) + m.a.sub(x),
        lambda m, x: x.mul(m.a) + x.mul(m.b),
        lambda m, x: x.to(torch.float64).sum() + x.to(torch.float16).sum(),
        lambda m, x: torch.rand(4) + torch.rand(4) + x,
    ],
    ids=["operators", "zeros", "axes", "order", "tensors", "dtypes", "random"],
)
def test_what_differs_stays_apart(forward: Callable[..., Any]) -> None:
    parts = {"a": torch.nn.Parameter(normal(4, seed=1)), "b": torch.nn.Parameter(normal(4, seed=2))}
    program = program_of(forward, parts=parts)
    assert run_passes(program, [CSE()]).records[0].anchors == 0


def test_equal_numbers_of_different_types_stay_apart() -> None:
    program = program_of(lambda m, x: x.mul(2) + x.mul(2.0), torch.arange(6).reshape(2, 3))
    assert run_passes(program, [CSE()]).records[0].anchors == 0


def test_two_outputs_stay_two() -> None:
    program = program_of(lambda m, x: [x.sin(), x.sin()])
    assert_refuses(CSE(), program, code="graph-output")


def test_what_reads_two_outputs_stays_apart_with_them() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        one, other = x.sin(), x.sin()
        return [one, other, one.exp() + other.exp()]

    assert_refuses(CSE(), program_of(forward), code="graph-output")


def test_one_output_and_one_value_become_one() -> None:
    program = program_of(lambda m, x: [x.sin(), x.sin().exp()])
    assert_rewrites(CSE(), program, before={"aten.sin": 2}, after={"aten.sin": 1}, max_ulp=0)


class Timesteps(nn.Module):
    """What blocks of a diffusion transformer repeat: angles of whole numbers, and an embedding, of the same inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 6) for _ in range(3)])

    def forward(self, step: Tensor, label: Tensor) -> Tensor:
        return torch.stack([F.silu(layer(self.angles(step) + self.table(label))) for layer in self.layers]).sum(0)

    def angles(self, step: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(0, 8, dtype=torch.float32) * -0.3)
        turned = step[:, None].float() * frequencies[None, :]
        return torch.cat([turned.sin(), turned.cos()], -1)


def test_floating_numbers_made_of_the_same_integers_are_one() -> None:
    module = randomised(Timesteps())
    inputs = (torch.tensor([7, 421, 999]), torch.tensor([0, 4, 2]))
    program = capture(module, inputs, dynamic={"step": {0: "batch"}, "label": {0: "batch"}})
    run = run_passes(program, [EliminateCommonSubexpressions()], [VerifyPasses(level="full")])
    assert run.records[0].outcome == "kept", run.records[0].reason
    census = operator_census(run.program.graph)
    assert census["aten.embedding"] == census["aten.sin"] == census["aten.cat"] == 1
