import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.cli.outcome import optimize_code
from flowopt.errors import UserError
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Finding, Outcome, Verdict
from flowopt.rewrite import Budget, Domain, Edit, RewritePass
from flowopt.verification.verify_passes import VerifyPasses
from flowopt.workflows.optimize import OptimizeResult, optimize
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.verified_run import VerifyMode, with_budgets
from flowopt.workflows.verify import verify
from tests.verification.declared import approximate, on_domain
from tests.verification.substitute import aten, substitute


class Gated(nn.Module):
    """A gelu of a magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.layer(x.abs()))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Gated().eval(), (torch.rand(4, 8),), dynamic={"x": {0: "batch"}})


def tanh_gelu(edit: Edit, node: fx.Node) -> fx.Node:
    return edit.call(aten.gelu.default, node.args[0], approximate="tanh")


def within(decibels: float) -> RewritePass:
    return approximate(aten.gelu.default, tanh_gelu, Budget(min_snr_db=decibels))


NOT_NEGATIVE = Domain(
    "x >= 0",
    lambda inputs: bool((inputs["x"] >= 0).all()),
    lambda inputs: {"x": torch.zeros_like(inputs["x"])},
    lambda inputs: {"x": -torch.ones_like(inputs["x"])},
)


def identity_if_positive(edit: Edit, node: fx.Node) -> fx.Node:
    """x, which fails where an element is negative: an index is out of range."""
    x = node.args[0]
    holds = edit.call(aten.all.default, edit.call(aten.ge.Scalar, x, 0))
    index = edit.call(aten.where.ScalarOther, holds, edit.call(aten.full.default, [], 0), 9)
    only = edit.call(aten.full.default, [1], 0.0)
    zero = edit.call(aten.index_select.default, only, 0, edit.call(aten.reshape.default, index, [1]))
    return edit.call(aten.add.Tensor, x, zero)


def optimized(program: Program, folder: Path, *passes: RewritePass, verify: VerifyMode = "each") -> OptimizeResult:
    """Through torch's own archive: no lowering of numbers is under test here."""
    return optimize(program, target="torch", folder=folder, passes=Pipeline(passes), verify=verify)


def code_of(result: OptimizeResult) -> int:
    return optimize_code(result.report, result.verdict, strict=False, require_device=False)


@pytest.fixture(scope="module")
def result(program: Program, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    return optimized(program, tmp_path_factory.mktemp("made") / "model", within(40.0))


class TestApproximate:
    def test_the_whole_ends_as_approximate_and_exits_with_0(self, result: OptimizeResult) -> None:
        assert result.verdict.outcome is Outcome.APPROXIMATE and result.artifact is not None
        assert result.report.outcome == "approximate"
        assert code_of(result) == 0

    def test_the_verdict_says_which_budget_and_what_was_measured(self, result: OptimizeResult) -> None:
        assert result.verdict.notes[0].startswith("budget of declared: signal-to-noise ratio ")
        assert "40 dB is the least" in result.verdict.notes[0]

    def test_report_json_says_so(self, result: OptimizeResult) -> None:
        assert result.artifact is not None
        report = json.loads((result.artifact.folder / "report.json").read_text())
        assert report["outcome"] == "approximate"
        (record,) = (p for p in report["passes"] if p["name"] == "declared")
        assert (record["exactness"], record["outcome"]) == ("approximate", "kept")
        assert record["verdict"]["outcome"] == "approximate"

    def test_the_file_is_held_to_what_the_pass_made(self, result: OptimizeResult, program: Program) -> None:
        """No less exact than the approximated program, and not the captured one."""
        assert [level.verdict.outcome for level in result.report.lowered] == [Outcome.EQUIVALENT]
        assert verify(result.program, result.program).outcome is Outcome.EQUIVALENT
        assert verify(program, result.program).outcome is Outcome.DIFFERENT

    def test_a_dry_run_ends_the_same_way(self, program: Program) -> None:
        result = optimize(program, passes=Pipeline([within(40.0)]), dry_run=True)
        assert result.verdict.outcome is Outcome.APPROXIMATE and code_of(result) == 0

    def test_a_reverted_pass_leaves_the_whole_exact(self, program: Program, tmp_path: Path) -> None:
        result = optimized(program, tmp_path / "model", within(120.0))
        assert result.report.passes[-1].outcome == "reverted"
        assert (result.verdict.outcome, result.report.outcome) == (Outcome.EQUIVALENT, "verified")
        assert "120 dB is the least" in result.report.warnings[0]


class TestFinal:
    def test_knows_no_budget(self, program: Program, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="declared is approximate: only --verify each knows its budget") as caught:
            optimized(program, tmp_path / "model", within(40.0), verify="final")
        assert caught.value.hint == "leave out --verify final"

    def test_knows_no_domain(self, program: Program, tmp_path: Path) -> None:
        rewrite_pass = on_domain(aten.abs.default, identity_if_positive, NOT_NEGATIVE)
        with pytest.raises(UserError, match="declared is exact-on-domain: only --verify each knows its domain"):
            optimized(program, tmp_path / "model", rewrite_pass, verify="final")

    def test_judges_exact_passes_at_the_end(self, program: Program, tmp_path: Path) -> None:
        right = substitute(aten.abs.default, lambda e, n: e.call(aten.abs.default, n.args[0]))
        wrong = substitute(aten.abs.default, lambda e, n: n.args[0])
        assert optimized(program, tmp_path / "right", right, verify="final").verdict.outcome is Outcome.EQUIVALENT
        found = optimized(program, tmp_path / "wrong", wrong, verify="final")
        assert found.verdict.outcome is Outcome.DIFFERENT and found.artifact is None and code_of(found) == 1


def test_without_verification_an_approximation_is_kept_and_nothing_is_claimed(program: Program, tmp_path: Path) -> None:
    result = optimized(program, tmp_path / "model", within(120.0), verify="off")
    assert (result.verdict.outcome, result.report.outcome) == (Outcome.NOT_VERIFIED, "not-verified")
    assert result.report.passes[-1].outcome == "kept"


def test_a_file_may_fail_where_a_kept_pass_does(program: Program, tmp_path: Path) -> None:
    rewrite_pass = on_domain(aten.abs.default, identity_if_positive, NOT_NEGATIVE)
    result = optimized(program, tmp_path / "model", rewrite_pass)
    assert result.report.passes[-1].outcome == "kept", result.report.passes[-1].reason
    assert (result.verdict.outcome, code_of(result)) == (Outcome.EQUIVALENT, 0)
    assert [note for note in result.verdict.notes if "outside the domain of declared (x >= 0), where it fails" in note]


class TestWithBudgets:
    @pytest.fixture
    def records(self, program: Program) -> tuple[PassRecord, ...]:
        return run_passes(program, [within(40.0)], [VerifyPasses()]).records

    def test_a_good_verdict_behind_an_approximation_is_approximate(self, records: tuple[PassRecord, ...]) -> None:
        found = with_budgets(Verdict(Outcome.EQUIVALENT, notes=("a note",), seed=3), records)
        assert (found.outcome, found.seed) == (Outcome.APPROXIMATE, 3)
        assert len(found.notes) == 2 and found.notes[-1] == "a note"

    def test_a_bad_one_stays_bad(self, records: tuple[PassRecord, ...]) -> None:
        different = Verdict(Outcome.DIFFERENT, (Finding("ratio", "y", "case", "wrong"),))
        for verdict in (different, Verdict(Outcome.INCONCLUSIVE), Verdict(Outcome.NOT_VERIFIED)):
            assert with_budgets(verdict, records) is verdict

    def test_exact_passes_change_nothing(self, program: Program) -> None:
        right = substitute(aten.abs.default, lambda e, n: e.call(aten.abs.default, n.args[0]))
        exact = run_passes(program, [right, within(120.0)], [VerifyPasses()]).records
        assert [record.outcome for record in exact] == ["kept", "reverted"]
        verdict = Verdict(Outcome.EQUIVALENT)
        assert with_budgets(verdict, exact) is verdict
