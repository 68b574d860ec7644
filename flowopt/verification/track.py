"""A track: one set of weights of the original, and what the passes so far have made of it, in both precisions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from flowopt.errors import InternalError
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.ir.fingerprint import same_structure
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import Figures, Finding
from flowopt.rewrite.base import Exactness
from flowopt.rewrite.driver import apply, replay
from flowopt.verification.classes.bits import compare_bits
from flowopt.verification.evidence import CaseEvidence, Evidence
from flowopt.verification.float64_scatter import float64_scatter, is_saturated
from flowopt.verification.gates import compare
from flowopt.verification.grouping import grouped
from flowopt.verification.inputs.cases import Case
from flowopt.verification.limits import MODEL_LIMITS, Limits
from flowopt.verification.running import Outputs, first_line, run_case, run_cases
from flowopt.verification.sites.inner_values import reaches

Judged = Figures | Finding | str


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A pass on one track: the program before and after it, and the float64 twin before and after it."""

    before: Program
    after: Program
    twin_before: Program
    twin_after: Program


class Track:
    """The natural weights or the stressed ones.

    Attributes:
        name: put before the labels of cases, its first word before their regimes; empty for the natural weights.
        program: what the kept passes have made of it.
        twin: the same in float64, with float64 algebra throughout.
        evidence: of the weights as they were, on the cases that still count; the others are skipped ones.
    """

    def __init__(self, name: str, program: Program, evidence: Evidence, limits: Limits = MODEL_LIMITS) -> None:
        self.name = name
        self._kind = name.partition(" ")[0]
        self.program = self._original = program
        self.twin = program.raised_copy()
        self.evidence = evidence
        self._limits = limits
        self._scatters: dict[str, dict[str, Tensor]] = {}

    def rewritten(self, run: PassRun, *, is_given: bool) -> Rewritten | Finding:
        """Carry out the pass's steps on this track; ``is_given``: the program itself comes from the run."""
        before, after = (run.before, run.after) if is_given else (self.program, self.program.copy())
        twin = self.twin.copy()
        copies = [("float64 twin", twin)] if is_given else [("program", after), ("float64 twin", twin)]
        for what, copy in copies:
            problem = _replayed(run, copy, f"{self.name} {what}".strip())
            if problem is not None:
                return problem
        return Rewritten(before, after, self.twin, twin)

    def keep(self, run: PassRun, done: Rewritten, evidence: Evidence) -> None:
        """The pass is kept: go on from what it made, on those cases of ``evidence`` that still reach all of it."""
        reached = [reaches(run, one.case) for one in evidence.cases]
        left = tuple(one for one, is_reached in zip(evidence.cases, reached, strict=True) if is_reached)
        lost = tuple(
            self._unreached(one) for one, is_reached in zip(evidence.cases, reached, strict=True) if not is_reached
        )
        self.program, self.twin = done.after, done.twin_after
        self.evidence = replace(evidence, cases=left, skipped=(*evidence.skipped, *lost))

    def judge(self, run: PassRun, done: Rewritten, evidence: Evidence) -> Iterator[Judged]:
        """Findings, figures and notes of every case."""
        runnable = []
        for one in evidence.cases:
            if reaches(run, one.case):
                runnable.append(one)
            else:
                yield self._unreached(one)
        known = iter(runnable)
        for group in grouped(done.after, [one.case for one in runnable]):
            found, raised = run_cases(done.after, group), run_cases(done.twin_after, group)
            before = run_cases(done.before, group) if run.rewrite_pass.exactness is Exactness.BITWISE else None
            for at in range(len(group)):
                yield from self._compared(next(known), done, found[at], raised[at], before[at] if before else None)

    def decides_alike(self, run: PassRun) -> bool:
        """Whether the pass, asked anew on this track's weights, decides the same at every site that it rewrote.

        Where it does not, its decision rests on what is stored, and other weights say nothing about the rewrite.
        """
        try:
            steps = apply(run.rewrite_pass, self.program.copy()).steps
        except RUN_ERRORS:
            return False
        decided = {step.anchor: repr(step.plan) for step in steps}
        return all(decided.get(step.anchor) == repr(step.plan) for step in run.application.steps)

    def _compared(
        self,
        known: CaseEvidence,
        done: Rewritten,
        candidate: Outputs | Exception,
        raised: Outputs | Exception,
        before: Outputs | Exception | None,
    ) -> Iterator[Judged]:
        label, is_stressed = self._label(known), bool(self.name)
        if isinstance(candidate, Exception) and isinstance(run_cases(done.before, (known.case,))[0], Exception):
            yield f"{label}: not judged, it failed before this pass too"
            return
        for what, values in (("it no longer runs", candidate), ("it no longer runs in float64", raised)):
            if isinstance(values, Exception):
                yield Finding("structure", "the program", label, f"{what}: {first_line(values)}")
                return
        assert not isinstance(candidate, Exception) and not isinstance(raised, Exception)
        for name, one in known.outputs.items():
            judge = partial(compare, name, label, one, candidate[name], raised[name], limits=self._limits)
            result = judge(skip_weak_rows=is_stressed)
            if not is_stressed and is_saturated(one) and any(f.gate == "twin" for f in result.findings):
                result = judge(scatter=self._scatter(known)[name])
            yield from result.findings
            if result.figures is not None:
                yield replace(result.figures, regime=f"{self._kind} {known.case.regime}".strip())
            if before is not None and not isinstance(before, Exception):
                yield from _differing_bits(name, label, before[name], candidate[name], (known.case, done))

    def _scatter(self, known: CaseEvidence) -> dict[str, Tensor]:
        """Of the original in float64; measured when it is first asked for."""
        label = known.case.label
        if label not in self._scatters:
            self._scatters[label] = float64_scatter(self._original, known, self.evidence.seed)
        return self._scatters[label]

    def _unreached(self, known: CaseEvidence) -> str:
        return f"{self._label(known)}: not run, the pass rewrote the node that the case replaces"

    def _label(self, known: CaseEvidence) -> str:
        return f"{self.name} {known.case.label}".strip()


def _differing_bits(
    name: str, label: str, before: Tensor, candidate: Tensor, at: tuple[Case, Rewritten]
) -> list[Finding]:
    """Findings that remain when both programs run by themselves.

    Cases run on a core each, and what the pass stored was computed on all: the order of a sum, as that of a norm over
    a weight, may depend on how many there are.
    """
    found = list(compare_bits(name, label, before, candidate))
    if not found:
        return []
    case, done = at
    alone = [run_case(program, case)[name] for program in (done.before, done.after)]
    return list(compare_bits(name, label, *alone))


def _replayed(run: PassRun, copy: Program, what: str) -> Finding | None:
    name = run.rewrite_pass.text()
    try:
        replay(run.rewrite_pass, run.application.steps, copy)
    except InternalError as error:
        return Finding("replay", name, what, error.message)
    except RUN_ERRORS as error:
        return Finding("replay", name, what, f"the rewrite fails there: {first_line(error)}")
    if not same_structure(run.after.graph, copy.graph):
        return Finding("replay", name, what, f"the rewrite built another graph on the {what}")
    return None
