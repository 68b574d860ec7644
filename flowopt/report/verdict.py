"""Verdict: are two programs the same function, as well as that can be seen?"""

from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """The possible ends of a verification."""

    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    APPROXIMATE = "approximate"
    INCONCLUSIVE = "inconclusive"
    NOT_VERIFIED = "not-verified"


@dataclass(frozen=True, slots=True)
class Figures:
    """How one output compared in one case.

    Errors are absolute, against the float64 oracle, over the elements in scope.

    Attributes:
        output: dotted name of the output.
        case: name of the input case.
        max_error: largest error of the candidate.
        own_error: largest error of the original (with its one-ulp ensemble).
        ratio: the error gate's worst ratio: candidate error over what is allowed; at most 1 passes.
        twin_error: largest difference of the float64 twin relative to the row's scale; None where there is no twin.
        power: smallest relative change that this case could have seen.
        ignored: elements out of scope because the oracle itself is not finite there.
    """

    output: str
    case: str
    max_error: float
    own_error: float
    ratio: float
    twin_error: float | None
    power: float
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One gate that failed.

    Attributes:
        gate: ``structure``, ``specials``, ``twin``, ``ratio``, ``discrete``, ``bits``, ``site`` or ``replay``.
        where: the output, or the site for site gates.
        case: the input case, with its sizes, that shows it.
        message: what was seen and what was allowed.
    """

    gate: str
    where: str
    case: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a verification, with its evidence. Truthy when the numbers can be trusted.

    Attributes:
        outcome: how it ended.
        findings: gates that failed, worst first; empty for an equivalent pair.
        figures: per output and case.
        notes: what was not checked, and why.
        seed: of the input cases and of the one-ulp ensemble.
    """

    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    figures: tuple[Figures, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    cases: tuple[str, ...] = field(default=())

    def __bool__(self) -> bool:
        return self.outcome in (Outcome.EQUIVALENT, Outcome.APPROXIMATE)

    @property
    def reason(self) -> str:
        """The first finding in one sentence, or why nothing could be decided; empty for a good verdict."""
        if not self.findings:
            return "" if self else f"nothing could be compared: {self.notes[0] if self.notes else 'no case ran'}"
        first = self.findings[0]
        return f"{first.gate} gate: {first.where}: {first.message} (case {first.case})"

    @property
    def power(self) -> float:
        """Smallest relative change that every output's best case would have seen; 0.0 without figures."""
        best: dict[str, float] = {}
        for one in self.figures:
            best[one.output] = min(best.get(one.output, float("inf")), one.power)
        return max(best.values(), default=0.0)
