"""Figures gathered by output and kind of numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

from flowopt.report.verdict import Figures, Metrics


@dataclass(frozen=True, slots=True)
class RegimeFigures:
    """The worst of each figure that one output showed in all cases of one kind of numbers.

    Attributes:
        output: dotted name.
        regime: kind of numbers.
        cases: how many.
        candidate: the candidate's worst errors; None for integers and booleans.
        original: the original's own worst errors beside them.
        ratio: the error gate's worst ratio.
        power: the smallest relative change that the best of the cases would have seen.
        ignored: elements where the oracle itself is not finite, summed.
        undecided: elements that hang on a decision that rounding may turn, summed.
    """

    output: str
    regime: str
    cases: int
    candidate: Metrics | None
    original: Metrics | None
    ratio: float
    power: float
    ignored: int
    undecided: int


def by_output_and_regime(figures: Iterable[Figures]) -> tuple[RegimeFigures, ...]:
    """One entry per output and kind of numbers, in the order in which they first came."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for one in figures:
        groups.setdefault((one.output, one.regime), []).append(one)
    return tuple(_gathered(output, regime, found) for (output, regime), found in groups.items())


def _gathered(output: str, regime: str, found: list[Figures]) -> RegimeFigures:
    return RegimeFigures(
        output=output,
        regime=regime,
        cases=len(found),
        candidate=_worst(f.candidate for f in found),
        original=_worst(f.original for f in found),
        ratio=max(f.ratio for f in found),
        power=min(f.power for f in found),
        ignored=sum(f.ignored for f in found),
        undecided=sum(f.undecided for f in found),
    )


def _worst(metrics: Iterable[Metrics | None]) -> Metrics | None:
    known = [m for m in metrics if m is not None]
    if not known:
        return None
    return Metrics(
        max_error=max(m.max_error for m in known),
        p99_error=max(m.p99_error for m in known),
        rms_error=max(m.rms_error for m in known),
        max_ulp=max(m.max_ulp for m in known),
        snr_db=min(m.snr_db for m in known),
        cosine=min(m.cosine for m in known),
    )
