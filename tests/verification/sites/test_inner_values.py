from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.pipeline.instrument import PassRun
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import Budget, Edit, RewritePass
from flowopt.rewrite.driver import apply
from flowopt.verification.inputs.cases import Case
from flowopt.verification.sites.inner_values import reaches
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.declared import approximate
from tests.verification.substitute import aten, substitute
from tests.zoo.models import randomise


def looking_up(body: Callable[[Tensor], Tensor]) -> Program:
    class LookingUp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return body(self.table(ids))

    module = LookingUp()
    randomise(module, seed=0)
    ids = torch.arange(12).reshape(3, 4) % 7
    return capture(module.eval(), (ids,), dynamic={"ids": {0: "batch", 1: "sequence"}})


def gated(x: Tensor) -> Tensor:
    return torch.relu(x) + torch.sin(x)


def into_the_table(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(embedding(W, ids)) -> embedding(relu(W), ids): right, and it reads the ids, not the embedding."""
    looked_up = node.args[0]
    assert isinstance(looked_up, fx.Node)
    table, ids = looked_up.args
    assert isinstance(table, fx.Node)
    return edit.call(aten.embedding.default, edit.parameter("relu", edit.constant(table).relu(), like=table), ids)


def again(target: Any) -> RewritePass:
    return substitute(target, lambda e, n: e.call(target, *n.args))


def run_of(program: Program, rewrite_pass: RewritePass) -> PassRun:
    after = program.copy()
    return PassRun(rewrite_pass, program, after, apply(rewrite_pass, after))


@pytest.fixture(scope="module")
def program() -> Program:
    return looking_up(gated)


def replacing(program: Program, *targets: Any) -> Case:
    found = [n for n in program.graph.nodes if n.target in targets]
    return Case("replacing", {}, {}, {n.name: torch.zeros(3, 4, 8) for n in found})


class TestReaches:
    def test_what_replaces_nothing_reaches_everything(self, program: Program) -> None:
        run = run_of(program, substitute(aten.relu.default, into_the_table))
        assert reaches(run, Case("plain", {}, {}))

    def test_a_pass_behind_the_node(self, program: Program) -> None:
        assert reaches(run_of(program, again(aten.relu.default)), replacing(program, aten.embedding.default))

    def test_not_a_pass_that_removed_the_node(self, program: Program) -> None:
        assert not reaches(run_of(program, again(aten.embedding.default)), replacing(program, aten.embedding.default))

    def test_not_a_pass_that_reads_what_lies_before_the_node(self, program: Program) -> None:
        run = run_of(program, substitute(aten.relu.default, into_the_table))
        case = replacing(program, aten.embedding.default)
        assert case.overrides.keys() <= {n.name for n in run.after.graph.nodes}
        assert not reaches(run, case)

    def test_a_pass_before_the_node_or_beside_it(self, program: Program) -> None:
        beside = replacing(program, aten.sin.default)
        assert reaches(run_of(program, substitute(aten.relu.default, into_the_table)), beside)
        assert reaches(run_of(program, again(aten.relu.default)), replacing(program, aten.add.Tensor))


class TestJudged:
    def test_a_right_pass_around_the_node_is_not_accused_and_neither_is_what_follows(self, program: Program) -> None:
        passes = [substitute(aten.relu.default, into_the_table), again(aten.sin.default)]
        records = run_passes(program, passes, [VerifyPasses()]).records
        assert [r.outcome for r in records] == ["kept", "kept"], [r.reason for r in records]
        for record in records:
            assert record.verdict is not None
            assert [n for n in record.verdict.notes if n.startswith("injected[") and "not run" in n]

    def test_a_wrong_pass_around_the_node_is_caught_by_other_cases(self, program: Program) -> None:
        def wrong(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.mul.Tensor, into_the_table(edit, node), 1 + 1e-6)

        assert run_passes(program, [substitute(aten.relu.default, wrong)], [VerifyPasses()]).records[0].reason

    def test_an_approximation_around_the_node_is_not_accused(self, program: Program) -> None:
        """The case puts NaN in the place of the embedding, which the other path does not see."""
        rewrite_pass = approximate(aten.relu.default, into_the_table, Budget(min_snr_db=40.0))
        (record,) = run_passes(program, [rewrite_pass], [VerifyPasses()]).records
        assert record.outcome == "kept", record.reason
