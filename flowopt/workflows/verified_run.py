"""Run a pipeline as thoroughly verified as was asked, and say what the whole came to."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from flowopt.errors import UserError
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Outcome, Verdict
from flowopt.rewrite.base import Exactness, RewritePass
from flowopt.verification.evidence import Evidence
from flowopt.verification.levels import Level
from flowopt.verification.verify_outputs import verify_outputs
from flowopt.verification.verify_passes import VerifyPasses
from flowopt.verification.verify_program import check_program
from flowopt.workflows.lower import Progress
from flowopt.workflows.pipelines import Pipeline

VerifyMode = Literal["each", "final", "off"]
NOT_VERIFIED = Verdict(Outcome.NOT_VERIFIED)
_DECLARED = {Exactness.APPROXIMATE: "budget", Exactness.EXACT_ON_DOMAIN: "domain"}


@dataclass(frozen=True, slots=True)
class Checks:
    """How thoroughly a run is verified."""

    mode: VerifyMode
    seed: int
    level: Level
    case_budget: float
    on_progress: Progress

    def on_case(self, case: str) -> None:
        self.on_progress(f"oracle: {case}")

    def instrument(self) -> VerifyPasses:
        return VerifyPasses(seed=self.seed, level=self.level, budget_tflop=self.case_budget, on_case=self.on_case)


def rewritten(program: Program, pipeline: Pipeline, checks: Checks) -> tuple[Evidence | None, PipelineRun]:
    """The rewritten program, and what is known of the original; None when nothing is verified.

    Raises:
        UserError: a pass that declares a budget or a domain is to be judged at the end only, where it is unknown.
    """
    if checks.mode == "final":
        for one in pipeline.passes:
            _require_no_declaration(one)
    instrument = checks.instrument()
    run = run_passes(
        program,
        pipeline.passes,
        [instrument] if checks.mode == "each" else [],
        on_pass=lambda p: checks.on_progress(f"pass {p.text()}"),
    )
    if checks.mode == "off":
        return None, run
    if checks.mode == "final":
        instrument.start(program)
    return instrument.evidence, run


def verdict_of_program(original: Program, run: PipelineRun, evidence: Evidence | None, checks: Checks) -> Verdict:
    """The rewritten program before lowering; after ``each`` it is known to agree, as far as any case ran."""
    if evidence is None:
        return NOT_VERIFIED
    if checks.mode == "each":
        outcome = Outcome.EQUIVALENT if evidence.cases else Outcome.INCONCLUSIVE
        verdict = Verdict(outcome, notes=evidence.skipped, seed=evidence.seed, level=checks.level)
        return with_budgets(verdict, run.records)
    return verify_outputs(
        evidence,
        run.program.run_named,
        level=checks.level,
        more=check_program(original, run.program, evidence, with_stress=False),
        on_case=lambda case: checks.on_progress(f"verifying: {case}"),
    )


def _require_no_declaration(rewrite_pass: RewritePass[Any]) -> None:
    declared = _DECLARED.get(rewrite_pass.exactness)
    if declared is not None:
        name, exactness = rewrite_pass.text(), rewrite_pass.exactness.value
        raise UserError(
            f"{name} is {exactness}: only --verify each knows its {declared}", hint="leave out --verify final"
        )


def with_budgets(verdict: Verdict, records: Iterable[PassRecord]) -> Verdict:
    """A good verdict is ``approximate`` behind a pass that was kept for staying within its budget."""
    kept = [r.verdict for r in records if r.outcome == "kept" and r.verdict is not None]
    within = [v for v in kept if v.outcome is Outcome.APPROXIMATE]
    if not within or verdict.outcome is not Outcome.EQUIVALENT:
        return verdict
    notes = (note for v in within for note in v.notes if note not in verdict.notes)
    return replace(verdict, outcome=Outcome.APPROXIMATE, notes=(*notes, *verdict.notes))
