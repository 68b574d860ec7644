"""Figures of several cases become one row per output and kind of numbers."""

import math
from dataclasses import replace

from flowopt.report.by_regime import by_output_and_regime
from flowopt.report.verdict import Figures, Metrics

GOOD = Metrics(max_error=1.0, p99_error=0.5, rms_error=0.25, max_ulp=2.0, snr_db=120.0, cosine=1.0)
BAD = Metrics(max_error=3.0, p99_error=0.1, rms_error=0.5, max_ulp=1.0, snr_db=100.0, cosine=0.9)


def figures(output: str = "y", regime: str = "normal", candidate: Metrics | None = GOOD) -> Figures:
    return Figures(
        output, "traced", 1.0, 1.0, ratio=0.5, twin_error=None, power=1e-6, ignored=1, undecided=2, elements=9,
        regime=regime, candidate=candidate, original=GOOD,
    )  # fmt: skip


def test_each_figure_is_the_worst_that_any_case_showed() -> None:
    (row,) = by_output_and_regime([figures(), figures(candidate=BAD)])
    assert row.candidate == Metrics(3.0, 0.5, 0.5, 2.0, 100.0, 0.9)
    assert row.original == GOOD and row.cases == 2


def test_power_is_that_of_the_best_case_and_counts_are_summed() -> None:
    (row,) = by_output_and_regime([figures(), replace(figures(), power=1e-7, ratio=0.9), replace(figures(), power=1.0)])
    assert row.power == 1e-7 and row.ratio == 0.9
    assert (row.cases, row.ignored, row.undecided) == (3, 3, 6)


def test_outputs_and_kinds_of_numbers_stay_apart_in_their_order() -> None:
    given = [figures("b", "spikes"), figures("a", "normal"), figures("b", "normal"), figures("b", "spikes")]
    rows = by_output_and_regime(given)
    assert [(r.output, r.regime, r.cases) for r in rows] == [("b", "spikes", 2), ("a", "normal", 1), ("b", "normal", 1)]


def test_cases_without_figures_do_not_spoil_those_that_have_some() -> None:
    (row,) = by_output_and_regime([figures(candidate=None), figures(candidate=BAD)])
    assert row.candidate == BAD and row.cases == 2
    (none,) = by_output_and_regime([figures(candidate=None)])
    assert none.candidate is None


def test_infinite_figures_are_the_best_and_the_worst() -> None:
    exact, lost = replace(GOOD, snr_db=math.inf), replace(GOOD, snr_db=-math.inf)
    (row,) = by_output_and_regime([figures(candidate=exact), figures()])
    assert row.candidate is not None and row.candidate.snr_db == 120.0
    (row,) = by_output_and_regime([figures(candidate=lost), figures()])
    assert row.candidate is not None and row.candidate.snr_db == -math.inf


def test_nothing_gives_no_rows() -> None:
    assert by_output_and_regime([]) == ()
