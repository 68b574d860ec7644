"""APPROXIMATE passes: within the budget that they declare, on inputs of ordinary numbers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.pipeline.instrument import PassRun
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.verification.classes.budget_measures import Measure, measures
from flowopt.verification.classes.naive_cast import run_naive_cast
from flowopt.verification.evidence import CaseEvidence, Evidence
from flowopt.verification.gates import compare
from flowopt.verification.grouping import grouped
from flowopt.verification.inputs.case import Case
from flowopt.verification.levels import Level
from flowopt.verification.output_evidence import OutputEvidence, as_real
from flowopt.verification.running import Outputs, first_line, run_cases
from flowopt.verification.sites.inner_values import reaches

Judged = Figures | Finding | str


def judged_approximation(
    run: PassRun, evidence: Evidence, seed: int, level: Level, *, stop_early: bool = False
) -> Verdict:
    """Compare what an APPROXIMATE pass made with the original: structure, new NaN or Inf, and its budget.

    Only cases of ordinary numbers count for the budget; on all of them shapes and dtypes must be the original's,
    and no finite value may become NaN or infinite, unless the naive cast does the same to it. An output about which
    no case of ordinary numbers says anything makes the verdict inconclusive.
    """
    judging = _Judging(run)
    findings: list[Finding] = []
    figures: list[Figures] = []
    notes = list(evidence.skipped)
    for one in judging.judged(evidence):
        if isinstance(one, Finding):
            findings.append(one)
            if stop_early:
                break
        elif isinstance(one, str):
            notes.append(one)
        else:
            figures.append(one)
    unchecked = [] if findings else [o.name for o in run.after.outputs if o.name not in judging.checked]
    if unchecked:
        seen = ", ".join(unchecked)
        notes.insert(0, f"{seen}: the budget was not checked, no case of ordinary numbers has finite values of it")
    elif judging.worst:
        said = "; ".join(str(measure) for measure in judging.worst.values())
        notes.append(f"budget of {run.rewrite_pass.text()}: {said}")
    outcome = Outcome.DIFFERENT if findings else Outcome.INCONCLUSIVE if unchecked else Outcome.APPROXIMATE
    labels = tuple(e.case.label for e in evidence.cases)
    return Verdict(outcome, tuple(findings), tuple(figures), tuple(notes), seed, labels, level)


@final
class _Judging:
    """One pass with its budget, the worst measure of each limit, and the outputs that were measured."""

    def __init__(self, run: PassRun) -> None:
        self._run, self._budget = run, run.rewrite_pass.budget()
        self.worst: dict[tuple[str, bool], Measure] = {}
        self.checked: set[str] = set()

    def judged(self, evidence: Evidence) -> Iterator[Judged]:
        runnable = [e for e in evidence.cases if reaches(self._run, e.case)]
        known = iter(runnable)
        for group in grouped(self._run.after, [e.case for e in runnable]):
            for found in run_cases(self._run.after, group):
                yield from self._case(next(known), found)

    def _case(self, known: CaseEvidence, found: Outputs | Exception) -> Iterator[Judged]:
        label = known.case.label
        if isinstance(found, Exception):
            yield Finding("structure", "the program", label, f"it no longer runs: {first_line(found)}")
            return
        naive = self._naive(known.case) if known.case.is_natural else None
        if isinstance(naive, str):
            yield naive
        for name, one in known.outputs.items():
            result = compare(name, label, one, found[name], None)
            if result.figures is None:
                yield from result.findings
                continue
            yield replace(result.figures, regime=known.case.regime)
            yield from self._introduced(known.case, name, one, found[name])
            if known.case.is_natural and not isinstance(naive, str):
                yield from self._measured(result.figures, one, found[name], naive)

    def _measured(
        self, figures: Figures, known: OutputEvidence, found: Tensor, naive: Outputs | None
    ) -> Iterator[Finding]:
        if figures.elements and figures.ignored + figures.undecided == figures.elements:
            return
        self.checked.add(figures.output)
        cast = None if naive is None else naive[figures.output]
        if cast is not None and cast.shape != found.shape:
            cast = None  # a size that depends on data
        for measure in measures(self._budget, figures, known, found, cast):
            key = (measure.limit, known.own_error is None)
            if key not in self.worst or measure.is_worse(self.worst[key]):
                self.worst[key] = measure
            if measure.is_over:
                yield Finding("budget", figures.output, figures.case, str(measure))

    def _introduced(self, case: Case, name: str, known: OutputEvidence, found: Tensor) -> Iterator[Finding | str]:
        """Finite values that are finite no more: what 16 bits have no room for belongs to the cast itself."""
        if known.own_error is None:
            return
        new = torch.isfinite(as_real(known.oracle)) & torch.isfinite(as_real(known.original))
        new &= ~torch.isfinite(as_real(found))
        if not bool(new.any()):
            return
        naive = self._naive(case)
        if naive is not None and not isinstance(naive, str) and naive[name].shape == found.shape:
            overflown = new & ~torch.isfinite(as_real(naive[name]))
            if bool(overflown.any()):
                what = f"{int(overflown.sum())} finite values became NaN or Inf, as in the naive cast"
                yield f"{case.label}: {name}: {what}"
            new &= ~overflown
        if bool(new.any()):
            message = f"introduced: {int(new.sum())} finite values became NaN or Inf"
            yield Finding("specials", name, case.label, message)

    def _naive(self, case: Case) -> Outputs | str | None:
        """The naive cast's outputs, or why there are none; None where the budget names no cast."""
        if self._budget.cast is None:
            return None
        try:
            return run_naive_cast(self._run.before, case, self._budget.cast)
        except RUN_ERRORS as error:
            return f"{case.label}: the naive cast does not run, so nothing was compared with it: {first_line(error)}"
