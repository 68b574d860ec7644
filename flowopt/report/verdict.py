"""Verdict: are two programs the same function, as well as that can be seen?"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

STRESSED: Final = "stressed"
"""First word of the kinds of numbers that were fed to stressed weights.

Such weights are nobody's: how well a case sees with them says nothing about the model.
"""

ORDINARY: Final = ("normal", "uniform", "example", "data")
"""Kinds of numbers that a model is for.

What drowns in an offset is seen again where everything is a thousand times larger, and that says nothing about them.
"""


class Outcome(StrEnum):
    """The possible ends of a verification."""

    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    APPROXIMATE = "approximate"
    INCONCLUSIVE = "inconclusive"
    NOT_VERIFIED = "not-verified"


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far one value is from the float64 oracle, over the elements in scope.

    Attributes:
        max_error: largest absolute error.
        p99_error: error that 99 % of the elements do not exceed.
        rms_error: root mean square of the errors.
        max_ulp: largest error in units in the last place, of the dtype, at the oracle's magnitude.
        snr_db: signal-to-noise ratio in dB, 20 log10(|oracle| / |error|); infinite without an error.
        cosine: cosine similarity.
    """

    max_error: float
    p99_error: float
    rms_error: float
    max_ulp: float
    snr_db: float
    cosine: float


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
        power: smallest relative change that this case could have seen; infinite where nothing is in scope.
        ignored: elements out of scope because the oracle itself is not finite there.
        undecided: elements out of scope because a decision that rounding may turn either way changes them.
        elements: how many the output has.
        regime: kind of numbers that the case feeds.
        candidate: the candidate's errors in other figures; None for integers and booleans.
        original: the same of the original alone, to stand beside it.
    """

    output: str
    case: str
    max_error: float
    own_error: float
    ratio: float
    twin_error: float | None
    power: float
    ignored: int = 0
    undecided: int = 0
    elements: int = 0
    regime: str = ""
    candidate: Metrics | None = None
    original: Metrics | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One gate that failed.

    Attributes:
        gate: ``structure``, ``specials``, ``twin``, ``ratio``, ``discrete``, ``bits``, ``site``, ``replay``,
            ``behaviour``, ``precision``, ``domain`` or ``budget``.
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
        cases: labels of the cases that ran.
        level: ``quick`` or ``full``.
    """

    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    figures: tuple[Figures, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    cases: tuple[str, ...] = field(default=())
    level: str = "quick"

    def __bool__(self) -> bool:
        return self.outcome in (Outcome.EQUIVALENT, Outcome.APPROXIMATE)

    @property
    def reason(self) -> str:
        """The first finding in one sentence, or why nothing could be decided; empty for a good verdict."""
        if not self.findings:
            return "" if self else f"nothing could be decided: {self.notes[0] if self.notes else 'no case ran'}"
        first = self.findings[0]
        return f"{first.gate} gate: {first.where}: {first.message} (case {first.case})"

    @property
    def power(self) -> float:
        """Smallest relative change that every output's best case would have seen; 0.0 without figures."""
        return max(self.power_of_outputs.values(), default=0.0)

    @property
    def power_of_outputs(self) -> dict[str, float]:
        """The same by output; infinite for an output of which no case had an element in scope."""
        return {output: one.power for output, one in best_figures(self.figures).items()}


def best_figures(figures: Iterable[Figures]) -> dict[str, Figures]:
    """By output, the figures of the case that sees best: an ordinary one where anything is in scope in it.

    Cases with stressed weights do not count, unless there are no others.
    """
    found = tuple(figures)
    own = [one for one in found if not one.regime.startswith(STRESSED)]
    best: dict[str, Figures] = {}
    for one in own or found:
        if one.output not in best or _rank(one) < _rank(best[one.output]):
            best[one.output] = one
    return best


def _rank(figures: Figures) -> tuple[bool, bool, float]:
    """Ordinary numbers come first, where anything is in scope; what is zero throughout tells nothing."""
    is_blind = math.isinf(figures.power) or figures.power == 0
    return is_blind, figures.regime not in ORDINARY, figures.power
