"""The instrument that judges every pass of a pipeline."""

from collections.abc import Callable, Iterator
from typing import final

from flowopt.errors import InternalError
from flowopt.ir.fingerprint import same_structure
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.rewrite.base import Exactness
from flowopt.rewrite.driver import replay
from flowopt.verification.bits import compare_bits
from flowopt.verification.cases import Case
from flowopt.verification.evidence import RUN_ERRORS, Evidence, collect_evidence, first_line, run_case
from flowopt.verification.gates import compare
from flowopt.verification.site_check import Twins, check_sites


@final
class VerifyPasses:
    """Judges each pass against the captured original: float64 twin, rounding, structure, specials, and its sites.

    The oracle and the original's own error are computed once, when they are first needed. The twin is a float64 copy of
    the program on which the steps of every kept pass are carried out again with float64 algebra throughout.
    """

    def __init__(self, *, seed: int = 0, on_case: Callable[[str], None] | None = None) -> None:
        self._seed = seed
        self._on_case = on_case
        self._evidence: Evidence | None = None
        self._twin: Program | None = None
        self.original: Program | None = None

    @property
    def evidence(self) -> Evidence:
        """What is known of the original.

        Raises:
            InternalError: no run has started.
        """
        if self.original is None:
            raise InternalError("the instrument has seen no program yet")
        if self._evidence is None:
            self._evidence = collect_evidence(self.original, seed=self._seed, on_case=self._on_case)
        return self._evidence

    def start(self, program: Program) -> None:
        """Take the captured original; nothing is computed until a pass has changed something."""
        self.original = program
        self._evidence = None
        self._twin = program.raised_copy()

    def judge(self, run: PassRun) -> Verdict:
        """Compare the program after a pass with the captured original, and the pass's sites on their own."""
        assert self._twin is not None
        if not self.evidence.cases:
            return Verdict(Outcome.INCONCLUSIVE, notes=self.evidence.skipped, seed=self._seed)
        twin = self._twin.copy()
        problem = self._replayed(run, twin)
        if problem is not None:
            return Verdict(Outcome.DIFFERENT, (problem,), seed=self._seed)
        findings: list[Finding] = []
        figures: list[Figures] = []
        notes = list(self.evidence.skipped)
        for case_findings, case_figures in self._cases(run, twin, notes):
            findings += case_findings
            figures += case_figures
        for found in check_sites(run, Twins(self._twin, twin), self._site_case(), self._seed):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                notes.append(found)
        outcome = Outcome.DIFFERENT if findings else Outcome.EQUIVALENT
        if not findings:
            self._twin = twin
        labels = tuple(e.case.label for e in self.evidence.cases)
        return Verdict(outcome, tuple(findings), tuple(figures), tuple(notes), self._seed, labels)

    def _replayed(self, run: PassRun, twin: Program) -> Finding | None:
        name = run.rewrite_pass.text()
        try:
            replay(run.rewrite_pass, run.application.steps, twin)
        except InternalError as error:
            return Finding("replay", name, "float64 twin", error.message)
        if not same_structure(run.after.graph, twin.graph):
            return Finding("replay", name, "float64 twin", "the rewrite built another graph on the float64 twin")
        return None

    def _cases(self, run: PassRun, twin: Program, notes: list[str]) -> Iterator[tuple[list[Finding], list[Figures]]]:
        for known in self.evidence.cases:
            label = known.case.label
            if not _has_nodes(run.after, known.case):
                notes.append(f"{label}: not run, the pass rewrote the node that the case replaces")
                continue
            try:
                candidate, raised = run_case(run.after, known.case), run_case(twin, known.case)
            except RUN_ERRORS as error:
                message = f"it no longer runs: {first_line(error)}"
                yield [Finding("structure", "the program", label, message)], []
                continue
            results = [compare(n, label, e, candidate[n], raised[n]) for n, e in known.outputs.items()]
            findings = [finding for result in results for finding in result.findings]
            if run.rewrite_pass.exactness is Exactness.BITWISE:
                before = run_case(run.before, known.case)
                findings += [f for n in known.outputs for f in compare_bits(n, label, before[n], candidate[n])]
            yield findings, [result.figures for result in results if result.figures is not None]

    def _site_case(self) -> Case:
        """The odd case where the model runs it, else the first that it runs."""
        cases = [e.case for e in self.evidence.cases]
        return next((case for case in cases if case.name == "prime"), cases[0])


def _has_nodes(program: Program, case: Case) -> bool:
    names = {n.name for n in program.graph.nodes} if case.overrides else set()
    return all(name in names for name in case.overrides)
