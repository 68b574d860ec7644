"""EXACT_ON_DOMAIN: exact inside the declared domain, its edge tested; outside it, an error or the same.

A rewrite that gives other numbers outside its domain would be silent about a precondition that nobody checks at run
time. So the negative case must fail, or agree.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, final

from flowopt.errors import UserError
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import Finding
from flowopt.rewrite.domain import Inputs
from flowopt.verification.evidence import CaseEvidence, Evidence, collect_evidence
from flowopt.verification.gates import compare
from flowopt.verification.inputs.cases import Case
from flowopt.verification.inputs.user_data import user_cases
from flowopt.verification.running import Outputs, run_cases

EDGE: Final = "edge-of-"
"""With the pass's name, that of the case at the edge of its domain."""


@final
class DomainCheck:
    """An EXACT_ON_DOMAIN pass on both sides of the edge of its domain.

    Attributes:
        evidence: of the original on the cases inside that replace no node, the domain's edge last.
        failing: labels of the level's cases outside on which the rewrite fails, once ``outside`` was drawn.
    """

    def __init__(self, run: PassRun, original: Program, evidence: Evidence) -> None:
        """Split the level's cases, and make the edge and the negative case of an ordinary one.

        Args:
            run: an EXACT_ON_DOMAIN pass.
            original: what it is judged against.
            evidence: of the original on the level's cases.
        """
        self._run, self._original = run, original
        self._name = run.rewrite_pass.pass_name()
        self._domain = run.rewrite_pass.domain(original)
        self._problems: list[Finding | str] = []
        self.failing: set[str] = set()
        # A domain is one of inputs: what replaces a node is nothing that the model computes from any.
        self._replacing = [
            f"{e.case.label}: not run, {self.description} says nothing of inner values"
            for e in evidence.cases
            if e.case.overrides
        ]
        self._problems += self._replacing
        known = [e for e in evidence.cases if not e.case.overrides]
        inside = [e for e in known if self.contains(e.case)]
        self._outside = [e for e in known if not self.contains(e.case)]
        self._edge: tuple[CaseEvidence, ...] = ()
        self._negative: Case | None = None
        ordinary = [e.case for e in (*inside, *self._outside)]
        start = next((c for c in ordinary if c.is_natural), next(iter(ordinary), None))
        if start is None:
            self._problems.append("the edge of its domain and its negative case: not run, no ordinary case is there")
        else:
            self._edge = self._edge_case(start, evidence.seed)
            self._negative = self._outside_case(start)
        self.evidence = replace(evidence, cases=(*inside, *self._edge))

    @property
    def description(self) -> str:
        """The pass's name and its domain."""
        return f"the domain of {self._run.rewrite_pass.text()} ({self._domain.description})"

    def contains(self, case: Case) -> bool:
        """Whether the domain contains a case."""
        return self._domain.contains(case.inputs)

    def outside(self) -> Iterator[Finding | str]:
        """What is wrong with the declaration, and each case outside where the rewrite neither fails nor agrees."""
        yield from self._problems
        for known in self._outside:
            (found,) = run_cases(self._run.after, (known.case,))
            if isinstance(found, Exception):
                self.failing.add(known.case.label)
            else:
                yield from self._compared(known, found)
        if self._negative is not None:
            yield from self._judged_negative(self._negative)

    def narrowed(self, evidence: Evidence) -> Evidence:
        """Evidence for what follows a kept pass: without cases that replace a node, or outside on which it fails.

        The edge stands in for these.
        """
        notes = tuple(f"{label}: outside {self.description}, where it fails" for label in sorted(self.failing))
        left = tuple(e for e in evidence.cases if not e.case.overrides and e.case.label not in self.failing)
        edge = self._edge if self.failing else ()
        return replace(evidence, cases=(*left, *edge), skipped=(*evidence.skipped, *self._replacing, *notes))

    def _edge_case(self, start: Case, seed: int) -> tuple[CaseEvidence, ...]:
        edge = self._made(f"{EDGE}{self._name}", start, self._domain.edge)
        if edge is None:
            return ()
        if not self.contains(edge):
            self._wrong(edge.label, f"its edge is outside {self.description}")
            return ()
        found = collect_evidence(self._original, seed=seed, cases=(edge,))
        for reason in found.skipped:
            self._wrong(edge.label, f"the original does not run at the edge of {self.description}: {reason}")
        return found.cases

    def _outside_case(self, start: Case) -> Case | None:
        beyond = self._made(f"outside-of-{self._name}", start, self._domain.outside)
        if beyond is not None and self.contains(beyond):
            self._wrong(beyond.label, f"its negative case is inside {self.description}")
            return None
        return beyond

    def _made(self, name: str, start: Case, change: Callable[[Inputs], Inputs]) -> Case | None:
        changed = change({n: t.clone() for n, t in start.inputs.items()})
        try:
            # It finds the sizes again: a domain may be one of sizes.
            (fitting,) = user_cases(self._original, {**start.inputs, **changed})
        except UserError as error:
            self._wrong(start.label, f"{name} does not fit the model: {error.message}")
            return None
        return replace(fitting, name=name, regime=start.regime, is_natural=start.is_natural)

    def _judged_negative(self, case: Case) -> Iterator[Finding]:
        (found,) = run_cases(self._run.after, (case,))
        if isinstance(found, Exception):
            return
        known = collect_evidence(self._original, seed=self.evidence.seed, cases=(case,))
        if known.cases:
            yield from self._compared(known.cases[0], found)
            return
        message = f"outside {self.description} it gives numbers where the original gives none: {known.skipped[0]}"
        yield Finding("domain", self._run.rewrite_pass.text(), case.label, message)

    def _compared(self, known: CaseEvidence, found: Outputs) -> Iterator[Finding]:
        label = known.case.label
        for name, one in known.outputs.items():
            for finding in compare(name, label, one, found[name], None, detailed=False).findings:
                message = f"outside {self.description} it neither fails nor agrees: {finding.gate}: {finding.message}"
                yield Finding("domain", name, label, message)

    def _wrong(self, label: str, message: str) -> None:
        self._problems.append(Finding("domain", self._run.rewrite_pass.text(), label, message))
