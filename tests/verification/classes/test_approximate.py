from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from flowopt.pipeline.instrument import PassRun
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Outcome, Verdict
from flowopt.rewrite import Budget, Edit, Exactness, RewritePass, Site
from flowopt.rewrite.driver import Application, apply
from flowopt.verification import verify_passes
from flowopt.verification.classes.approximate import judged_approximation
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.declared import approximate
from tests.verification.substitute import Build, aten, captured, judged, substitute


def tanh_gelu(edit: Edit, node: fx.Node) -> fx.Node:
    return edit.call(aten.gelu.default, node.args[0], approximate="tanh")


def quick_gelu(edit: Edit, node: fx.Node) -> fx.Node:
    x = node.args[0]
    return edit.call(aten.mul.Tensor, x, edit.call(aten.sigmoid.default, edit.call(aten.mul.Tensor, x, 1.702)))


def verdict_of(record: PassRecord) -> Verdict:
    assert record.verdict is not None
    return record.verdict


def decibels(budget: float) -> Budget:
    return Budget(min_snr_db=budget)


class TestSignalToNoise:
    def test_within_the_budget_a_pass_is_kept_as_approximate(self) -> None:
        record = judged(captured(functional.gelu), approximate(aten.gelu.default, tanh_gelu, decibels(40.0)))
        verdict = verdict_of(record)
        assert (record.outcome, record.reason, verdict.outcome) == ("kept", "", Outcome.APPROXIMATE)
        assert bool(verdict)

    def test_the_verdict_has_figures_and_the_worst_of_what_was_measured(self) -> None:
        record = judged(captured(functional.gelu), approximate(aten.gelu.default, quick_gelu, decibels(30.0)))
        verdict = verdict_of(record)
        assert [f.case.split("[")[0] for f in verdict.figures] == ["traced", "smallest", "prime", "special"]
        assert [f.regime for f in verdict.figures] == ["normal", "negative", "mixed-rows", "spikes"]
        natural = verdict.figures[0].candidate
        # True maximum of the approximation's error: 2.0e-2, of outputs of size 1.
        assert natural is not None and 30 < natural.snr_db < 50
        assert f"signal-to-noise ratio {natural.snr_db:.4g} dB, 30 dB is the least" in verdict.notes[-1]

    def test_beyond_the_budget_it_is_reverted_with_both_numbers(self) -> None:
        record = judged(captured(functional.gelu), approximate(aten.gelu.default, quick_gelu, decibels(60.0)))
        metrics = verdict_of(record).figures[0].candidate
        assert metrics is not None
        assert record.outcome == "reverted"
        assert record.reason.startswith(
            f"budget gate: output: signal-to-noise ratio {metrics.snr_db:.4g} dB, 60 dB is the least (case traced["
        )

    def test_only_ordinary_numbers_count(self) -> None:
        def clamped(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.clamp.default, edit.call(aten.gelu.default, node.args[0]), None, 9.0)

        record = judged(captured(functional.gelu), approximate(aten.gelu.default, clamped, decibels(40.0)))
        assert record.outcome == "kept", record.reason
        large = next(f for f in verdict_of(record).figures if f.case.startswith("prime"))
        assert large.candidate is not None and large.candidate.snr_db < 20

    def test_a_finite_value_must_stay_finite_for_other_numbers_too(self) -> None:
        def overflowing(edit: Edit, node: fx.Node) -> fx.Node:
            x = node.args[0]
            power = edit.call(aten.exp.default, edit.call(aten.mul.Tensor, x, 1.702))
            share = edit.call(aten.div.Tensor, power, edit.call(aten.add.Tensor, power, 1.0))
            return edit.call(aten.mul.Tensor, x, share)

        record = judged(captured(functional.gelu), approximate(aten.gelu.default, overflowing, decibels(20.0)))
        assert record.outcome == "reverted"
        assert {(f.gate, f.case.split("[")[0]) for f in verdict_of(record).findings} >= {("specials", "prime")}
        assert "introduced" in record.reason


def rounded_to(dtype: torch.dtype, times: float) -> Build:
    """sin(x) with ``times`` the error of its naive cast."""

    def build(edit: Edit, node: fx.Node) -> fx.Node:
        right = edit.call(aten.sin.default, node.args[0])
        narrow = edit.call(aten.sin.default, edit.call(aten._to_copy.default, node.args[0], dtype=dtype))
        cast = edit.call(aten._to_copy.default, narrow, dtype=torch.float32)
        error = edit.call(aten.mul.Tensor, edit.call(aten.sub.Tensor, cast, right), times)
        return edit.call(aten.add.Tensor, right, error)

    return build


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@pytest.fixture(scope="module")
def sine() -> Program:
    return capture(Sine().eval(), (torch.randn(4, 6),), dynamic={"x": {0: "batch"}})


class TestCast:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(("times", "outcome"), [(1.0, "kept"), (1.9, "kept"), (2.2, "reverted"), (4.0, "reverted")])
    def test_may_have_twice_the_error_of_the_naive_cast(
        self, sine: Program, dtype: torch.dtype, times: float, outcome: str
    ) -> None:
        record = judged(sine, approximate(aten.sin.default, rounded_to(dtype, times), Budget(cast=dtype)))
        assert record.outcome == outcome, record.reason
        if outcome == "reverted":
            name = str(dtype).removeprefix("torch.")
            assert record.reason.startswith("budget gate: output: error ")
            assert f"that of the naive cast to {name} is " in record.reason
            assert f": {times:.2g} times, 2 times is the most" in record.reason

    def test_a_model_in_bfloat16_is_no_careful_cast_to_float16(self) -> None:
        def narrow(edit: Edit, node: fx.Node) -> fx.Node:
            given = edit.call(aten._to_copy.default, node.args[0], dtype=torch.bfloat16)
            return edit.call(aten._to_copy.default, edit.call(aten.gelu.default, given), dtype=torch.float32)

        program = captured(functional.gelu)
        kept = judged(program, approximate(aten.gelu.default, narrow, Budget(cast=torch.bfloat16)))
        assert kept.outcome == "kept", kept.reason
        assert judged(program, approximate(aten.gelu.default, narrow, Budget(cast=torch.float16))).outcome == "reverted"

    def test_what_overflows_in_the_naive_cast_too_is_a_note(self) -> None:
        def half(edit: Edit, node: fx.Node) -> fx.Node:
            given = edit.call(aten._to_copy.default, node.args[0], dtype=torch.float16)
            return edit.call(aten._to_copy.default, edit.call(aten.gelu.default, given), dtype=torch.float32)

        record = judged(captured(functional.gelu), approximate(aten.gelu.default, half, Budget(cast=torch.float16)))
        assert record.outcome == "kept", record.reason
        notes = [n for n in verdict_of(record).notes if "as in the naive cast" in n]
        assert notes and notes[0].startswith("prime[")

    def test_a_naive_cast_that_does_not_run_leaves_nothing_to_compare_with(self) -> None:
        program = captured(lambda x: torch.fft.rfft(x, dim=-1).abs().sum(-1, keepdim=True) * x)

        def half(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.abs.default, node.args[0])

        record = judged(program, approximate(aten.abs.default, half, Budget(cast=torch.float16)))
        verdict = verdict_of(record)
        assert (record.outcome, verdict.outcome) == ("reverted", Outcome.INCONCLUSIVE)
        assert record.reason.startswith("nothing could be decided: output: the budget was not checked")
        assert [n for n in verdict.notes if "the naive cast does not run" in n]


def run_of(program: Program, rewrite_pass: RewritePass) -> PassRun:
    after = program.copy()
    return PassRun(rewrite_pass, program, after, apply(rewrite_pass, after))


class TestWithoutEvidence:
    def test_without_ordinary_numbers_the_budget_was_not_checked(self) -> None:
        program = captured(functional.gelu)
        known = collect_evidence(program)
        others = replace(known, cases=tuple(e for e in known.cases if not e.case.is_natural))
        assert len(others.cases) == 3
        run = run_of(program, approximate(aten.gelu.default, tanh_gelu, decibels(40.0)))
        assert judged_approximation(run, known, 0, "quick").outcome is Outcome.APPROXIMATE
        verdict = judged_approximation(run, others, 0, "quick")
        assert verdict.outcome is Outcome.INCONCLUSIVE and not verdict
        assert "no case of ordinary numbers" in verdict.reason

    def test_an_output_without_a_finite_number_was_not_checked(self) -> None:
        program = captured(lambda x: torch.log(-functional.gelu(x).square() - 1.0))
        record = judged(program, approximate(aten.gelu.default, tanh_gelu, decibels(40.0)))
        assert record.outcome == "reverted"
        assert verdict_of(record).outcome is Outcome.INCONCLUSIVE
        assert record.reason.startswith("nothing could be decided: output: the budget was not checked")


def with_other_body(program: Program, body: Any) -> PassRun:
    """A run that came to what ``body`` makes, without any step."""
    rewrite_pass = approximate(aten.gelu.default, tanh_gelu, decibels(1.0))
    return PassRun(rewrite_pass, program, captured(body), Application((), (), ()))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: functional.gelu(x)[:, :1], "torch.float32 [4, 1, 8], not torch.float32 [4, 6, 8]"),
        (lambda x: functional.gelu(x).index_select(1, torch.arange(5, 6)), "it no longer runs"),
    ],
)
def test_a_wrong_shape_or_an_error_is_a_finding_in_every_case(body: Any, message: str) -> None:
    program = captured(functional.gelu)
    verdict = judged_approximation(with_other_body(program, body), collect_evidence(program), 0, "quick")
    assert verdict.outcome is Outcome.DIFFERENT
    found = [f for f in verdict.findings if f.gate == "structure"]
    assert any(message in f.message for f in found), verdict.findings


def test_one_finding_is_enough_where_it_stops_early() -> None:
    rewrite_pass = approximate(aten.gelu.default, lambda e, n: e.call(aten.log.default, n.args[0]), decibels(40.0))
    counts = []
    for stop_early in (False, True):
        verifier = VerifyPasses(stop_early=stop_early)
        (record,) = run_passes(captured(functional.gelu), [rewrite_pass], [verifier]).records
        counts.append(len(verdict_of(record).findings))
    assert counts[0] > 1 and counts[1] == 1


class Deciding(nn.Module):
    """Scores, and the class that they choose."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = functional.gelu(x)
        return scores, scores.argmax(-1)


@pytest.fixture(scope="module")
def deciding() -> Program:
    return capture(Deciding().eval(), (torch.randn(64, 7),), dynamic={"x": {0: "batch"}})


class TestDecisions:
    @staticmethod
    def reversed_rows(edit: Edit, node: fx.Node) -> fx.Node:
        """One row in 64 is wrong."""
        y = edit.call(aten.gelu.default, node.args[0])
        first = edit.call(aten.flip.default, edit.call(aten.slice.Tensor, y, 0, 0, 1), [1])
        rest = edit.call(aten.slice.Tensor, y, 0, 1, 2**62)
        return edit.call(aten.cat.default, [first, rest])

    def test_agreement_is_the_share_of_rows_whose_largest_element_stays(self, deciding: Program) -> None:
        for least, outcome in ((0.98, "kept"), (0.99, "reverted")):
            record = judged(deciding, approximate(aten.gelu.default, self.reversed_rows, Budget(min_agreement=least)))
            assert record.outcome == outcome, record.reason
        assert "top-1 agreement 98.44%, 99.00% is the least" in record.reason
        assert [f for f in verdict_of(record).findings if "agreement of decisions 98.44%" in f.message]

    def test_without_a_limit_for_them_decisions_stay(self, deciding: Program) -> None:
        record = judged(deciding, approximate(aten.gelu.default, self.reversed_rows, decibels(1.0)))
        assert record.outcome == "reverted"
        assert "decisions that differ, of 64 (min_agreement is not set): 1, 0 is the most" in record.reason


class BackToGelu(RewritePass[fx.Node]):
    """x * sigmoid(1.702 x) -> gelu(x): what the approximation replaced."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.mul.Tensor,)

    def check(self, site: Site) -> fx.Node:
        site.require(isinstance(site.node.args[1], fx.Node), "not-constant", "a product with a number")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(plan, edit.call(aten.gelu.default, plan.args[0]))
        return "restored"


class TestBehindIt:
    """What is judged after an approximation is judged against what it made."""

    @staticmethod
    def product(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.mul.Tensor, edit.call(aten.sin.default, node.args[0]), 1.0)

    def test_right_passes_are_kept_and_wrong_ones_reverted(self) -> None:
        program = captured(lambda x: torch.sin(functional.gelu(x)))
        wrong = substitute(aten.sin.default, lambda e, n: e.call(aten.cos.default, n.args[0]))
        passes = [approximate(aten.gelu.default, quick_gelu, decibels(20.0)), wrong]
        passes.append(substitute(aten.sin.default, self.product))
        records = run_passes(program, passes, [VerifyPasses()]).records
        assert [r.outcome for r in records] == ["kept", "reverted", "kept"], [r.reason for r in records]
        assert [verdict_of(r).outcome for r in records] == [
            Outcome.APPROXIMATE,
            Outcome.DIFFERENT,
            Outcome.EQUIVALENT,
        ]

    def test_a_pass_that_is_right_for_the_captured_model_alone_is_wrong_now(self) -> None:
        passes = [approximate(aten.gelu.default, quick_gelu, decibels(20.0)), BackToGelu()]
        records = run_passes(captured(functional.gelu), passes, [VerifyPasses()]).records
        assert [r.outcome for r in records] == ["kept", "reverted"], [r.reason for r in records]

    def test_the_oracle_is_computed_again_after_a_kept_one_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def counted(program: Program, **options: Any) -> Evidence:
            asked.append(str(program.graph))
            return collect_evidence(program, **options)

        monkeypatch.setattr(verify_passes, "collect_evidence", counted)
        program = captured(lambda x: torch.sin(functional.gelu(x)))
        reverted = approximate(aten.gelu.default, quick_gelu, decibels(60.0))
        kept = approximate(aten.gelu.default, tanh_gelu, decibels(40.0))
        right = substitute(aten.sin.default, self.product)
        run_passes(program, [reverted, right], [VerifyPasses()])
        assert len(asked) == 1
        asked.clear()
        verifier = VerifyPasses()
        run_passes(program, [kept, right], [verifier])
        assert len(asked) == 2 and asked[0] != asked[1]
        # The next run starts with the captured model again.
        run_passes(program, [right], [verifier])
        assert len(asked) == 3 and asked[2] == asked[0]

    def test_a_reverted_one_leaves_no_trace(self) -> None:
        program = captured(lambda x: torch.sin(functional.gelu(x)))
        verifier = VerifyPasses()
        run_passes(program, [substitute(aten.sin.default, self.product)], [verifier])
        evidence, original = verifier.evidence, verifier.original
        run = run_of(program, approximate(aten.gelu.default, quick_gelu, decibels(60.0)))
        assert not verifier.judge(run)
        assert verifier.evidence is evidence and verifier.original is original
