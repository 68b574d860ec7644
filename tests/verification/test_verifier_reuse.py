"""What a verifier is asked over and over: bits, runs of one program, cases of every origin."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.pipeline.instrument import PassRun
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Outcome, Verdict
from flowopt.rewrite import Budget, Edit, Exactness, RewritePass, Site
from flowopt.verification import verify_passes
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.inputs.cases import Case
from flowopt.verification.levels import LEVELS, Level
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.declared import approximate
from tests.verification.substitute import aten, captured, substitute


def judged_at(level: Level, program: Program, rewrite_pass: RewritePass) -> PassRecord:
    (record,) = run_passes(program, [rewrite_pass], [VerifyPasses(level=level)]).records
    return record


def verdict_of(record: PassRecord) -> Verdict:
    assert record.verdict is not None
    return record.verdict


class TestBits:
    """BITWISE is judged by bits at both levels, and at sites by the sign of zero too."""

    @pytest.mark.parametrize("level", LEVELS)
    def test_a_lost_sign_of_zero_is_caught_at_the_site(self, level: Level, few_cases: None) -> None:
        """x * 1 -> x + 0: the same bits but for -0, which a layer hardly ever gives."""
        plus_zero = substitute(aten.mul.Tensor, lambda e, n: e.call(aten.add.Tensor, n.args[0], 0.0), Exactness.BITWISE)
        record = judged_at(level, captured(lambda x: x * 1.0), plus_zero)
        assert record.outcome == "reverted"
        assert [f for f in verdict_of(record).findings if f.gate == "site" and f.message.startswith("bits")]

    def test_without_it_the_bits_are_kept(self) -> None:
        same = substitute(aten.mul.Tensor, lambda e, n: n.args[0], Exactness.BITWISE)
        record = judged_at("quick", captured(lambda x: x * 1.0), same)
        assert record.outcome == "kept", record.reason

    def test_one_ulp_is_caught_in_the_cases(self) -> None:
        def reassociated(edit: Edit, node: fx.Node) -> fx.Node:
            inner = node.args[0]
            assert isinstance(inner, fx.Node)
            total = edit.call(aten.add.Tensor, inner.args[1], node.args[1])
            return edit.call(aten.add.Tensor, inner.args[0], total)

        def is_outer(site: Site) -> bool:
            return isinstance(site.node.args[0], fx.Node) and site.node.args[0].target is aten.add.Tensor

        class Reassociate(RewritePass[fx.Node]):
            exactness: ClassVar[Exactness] = Exactness.BITWISE
            anchors: ClassVar[tuple[Any, ...]] = (aten.add.Tensor,)

            def check(self, site: Site) -> fx.Node:
                site.require(is_outer(site) and "rewritten_by" not in site.node.meta, "unsupported-spelling", "no")
                return site.node

            def rewrite(self, edit: Edit, plan: fx.Node) -> str:
                edit.replace(plan, reassociated(edit, plan))
                return "reassociated"

        record = judged_at("quick", captured(lambda x: (x + torch.sin(x)) + torch.cos(x)), Reassociate())
        gates = {f.gate for f in verdict_of(record).findings}
        assert record.outcome == "reverted" and gates == {"bits", "site"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """One entry for each time that the original was asked."""
    asked: list[str] = []

    def counted(program: Program, **options: Any) -> Evidence:
        asked.append(",".join(sorted(program.tensors)))
        return collect_evidence(program, **options)

    monkeypatch.setattr(verify_passes, "collect_evidence", counted)
    yield asked


def again(edit: Edit, node: fx.Node) -> fx.Node:
    return edit.call(aten.sin.default, node.args[0])


def program_of_layer() -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return capture(module.eval(), (torch.ones(4, 8),))


class TestReuse:
    """One verifier over many runs."""

    @pytest.mark.usefixtures("few_cases")
    @pytest.mark.parametrize(("level", "runs"), [("quick", 1), ("full", 2)])
    def test_keeps_what_is_known_of_the_same_program(self, calls: list[str], level: Level, runs: int) -> None:
        verifier, program = VerifyPasses(level=level), captured(torch.sin)
        right, wrong = substitute(aten.sin.default, again), substitute(aten.sin.default, lambda e, n: n.args[0])
        outcomes = [run_passes(program, [p], [verifier]).records[0].outcome for p in (right, wrong, right)]
        assert outcomes == ["kept", "reverted", "kept"]
        assert len(calls) == runs  # the natural weights, and at level full the stressed ones

    def test_asks_again_for_another_program(self, calls: list[str]) -> None:
        verifier, passes = VerifyPasses(), [substitute(aten.sin.default, again)]
        run_passes(captured(torch.sin), passes, [verifier])
        run_passes(captured(lambda x: torch.sin(2 * x)), passes, [verifier])
        assert len(calls) == 2

    def test_asks_again_after_a_weight_was_written(self, calls: list[str]) -> None:
        program, verifier = program_of_layer(), VerifyPasses()
        passes = [substitute(aten.relu.default, lambda e, n: e.call(aten.relu.default, n.args[0]))]
        run_passes(program, passes, [verifier])
        with torch.no_grad():
            program.tensors["0.weight"].mul_(2.0)
        run_passes(program, passes, [verifier])
        assert len(calls) == 2

    def test_asks_again_for_other_ranges_of_the_same_graph(self, calls: list[str]) -> None:
        module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        verifier = VerifyPasses()
        relu = substitute(aten.relu.default, lambda e, n: e.call(aten.relu.default, n.args[0]))
        for most in (8, 32):
            ranges: dict[str, tuple[int, int | None]] = {"batch": (1, most)}
            given = {"dynamic": {"input": {0: "batch"}}, "dims": ranges}
            program = capture(module.eval(), (torch.ones(4, 8),), **given)  # type: ignore[arg-type]  # one dictionary
            run_passes(program, [relu], [verifier])
        assert len(calls) == 2


def test_one_finding_is_enough_where_it_stops_early() -> None:
    wrong = substitute(aten.sin.default, lambda e, n: e.call(aten.cos.default, n.args[0]))
    (all_of_them,) = run_passes(captured(torch.sin), [wrong], [VerifyPasses()]).records
    (first,) = run_passes(captured(torch.sin), [wrong], [VerifyPasses(stop_early=True)]).records
    assert len(verdict_of(all_of_them).findings) > 1
    assert [f.gate for f in verdict_of(first).findings] == ["site"]
    assert first.outcome == "reverted"


class TestCases:
    def test_what_the_budget_skips_is_named(self) -> None:
        right = substitute(aten.sin.default, again)
        program = captured(torch.sin)
        verifier = VerifyPasses(budget_tflop=1e-9)
        (record,) = run_passes(program, [right], [verifier]).records
        skipped = [n for n in verdict_of(record).notes if "above --case-budget" in n]
        assert skipped and len(skipped) + len(verdict_of(record).cases) == 4

    def test_without_any_case_nothing_is_decided_and_the_record_says_why(self) -> None:
        right = substitute(aten.sin.default, again)
        (record,) = run_passes(captured(torch.sin), [right], [VerifyPasses(budget_tflop=0.0)]).records
        assert (record.outcome, verdict_of(record).outcome) == ("reverted", Outcome.INCONCLUSIVE)
        assert record.reason.startswith("nothing could be decided: traced[batch=4,sequence=6]: skipped, ")

    def test_user_data_is_judged(self) -> None:
        """Wrong for 12345.0 alone, which no case of the battery holds; the site is right for all that it sees."""

        class Special(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.sin(x)

        def off(edit: Edit, node: fx.Node) -> fx.Node:
            at = edit.call(aten.eq.Scalar, node.args[0], 12345.0)
            return edit.call(
                aten.add.Tensor, edit.call(aten.sin.default, node.args[0]), edit.call(aten.mul.Tensor, at, 1.0)
            )

        program = capture(Special().eval(), (torch.randn(4, 8),), dynamic={"x": {0: "batch"}})
        wrong = substitute(aten.sin.default, off)
        assert run_passes(program, [wrong], [VerifyPasses()]).records[0].outcome == "kept"
        data = Case("data:mine", {"batch": 2}, {"x": torch.full((2, 8), 12345.0)}, regime="data")
        (record,) = run_passes(program, [wrong], [VerifyPasses(data=[data])]).records
        assert record.outcome == "reverted"
        assert {f.case for f in verdict_of(record).findings} == {"data:mine[batch=2]"}

    def test_two_cases_of_one_name_are_both_judged(self) -> None:
        class Special(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.sin(x)

        program = capture(Special().eval(), (torch.randn(4, 8),), dynamic={"x": {0: "batch"}})
        data = [Case("data:mine", {"batch": 2}, {"x": torch.full((2, 8), number)}) for number in (1.0, 2.0)]
        (record,) = run_passes(program, [substitute(aten.sin.default, again)], [VerifyPasses(data=data)]).records
        sizes = [f.max_error for f in verdict_of(record).figures if f.case == "data:mine[batch=2]"]
        assert len(sizes) == 2 and sizes[0] != sizes[1]

    def test_a_pass_that_removed_what_the_only_case_replaces_is_not_decided(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = captured(torch.sin)
        node = next(n.name for n in program.graph.nodes if n.target is aten.sin.default)
        x = torch.randn(2, 3, 8)
        replacing = Case("replacing", {"batch": 2, "sequence": 3}, {"x": x}, {node: x})
        monkeypatch.setattr(verify_passes, "selected_cases", lambda *_, **__: ((replacing,), ()))
        (record,) = run_passes(program, [substitute(aten.sin.default, again)], [VerifyPasses()]).records
        assert verdict_of(record).outcome is Outcome.INCONCLUSIVE
        assert record.reason == "nothing could be decided: no case was left to compare the outputs in"


class VetoFirst:
    """An instrument of somebody else's, which undoes the first pass."""

    def __init__(self) -> None:
        self.judged = 0

    def start(self, program: Program) -> None: ...

    def judge(self, run: PassRun) -> Verdict | None:
        self.judged += 1
        return Verdict(Outcome.INCONCLUSIVE, notes=("not today",)) if self.judged == 1 else None

    def keep(self, run: PassRun) -> None: ...


@pytest.mark.parametrize("exactness", [Exactness.EXACT, Exactness.APPROXIMATE])
def test_what_another_instrument_undoes_is_not_built_upon(exactness: Exactness) -> None:
    """Right by itself, and undone: the next pass is compared with what was there before."""

    def halves(edit: Edit, node: fx.Node) -> fx.Node:
        doubled = edit.call(aten.mul.Tensor, edit.call(aten.sin.default, node.args[0]), 2.0)
        return edit.call(aten.mul.Tensor, doubled, 0.5)

    def negated(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.neg.default, edit.call(aten.sin.default, edit.call(aten.neg.default, node.args[0])))

    first = (
        substitute(aten.sin.default, halves)
        if exactness is Exactness.EXACT
        else approximate(aten.sin.default, halves, Budget(min_snr_db=60.0))
    )
    verifier = VerifyPasses(level="full")
    program = captured(lambda x: torch.sin(x))
    records = run_passes(program, [first, substitute(aten.sin.default, negated)], [verifier, VetoFirst()]).records
    assert [r.outcome for r in records] == ["reverted", "kept"], [r.reason for r in records]
