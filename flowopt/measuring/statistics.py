"""Figures of repeated measurements: middle, spread, and how sure a ratio is."""

import statistics
from collections.abc import Sequence

import numpy as np

from flowopt.report.bench import Ratio, Timing

_RESAMPLES = 4000


def timing(bursts: Sequence[Sequence[float]]) -> Timing:
    """The figures of one contender.

    Args:
        bursts: seconds of every timed call, by round; none is empty.
    """
    medians = [statistics.median(burst) for burst in bursts]
    low, high = np.quantile(medians, [0.25, 0.75])
    return Timing(statistics.median(medians), float(low), float(high), len(bursts), sum(len(b) for b in bursts))


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, seed: int = 0) -> Ratio:
    """Time of ``ours`` over time of ``theirs``.

    Both ran in every round, right after each other, so what disturbs a round disturbs both: the ratio is taken round
    by round, and its median over rounds is resampled (percentile bootstrap, seeded) for the interval.

    Args:
        ours: seconds of every timed call, by round.
        theirs: the same of the other, as many rounds.
        seed: of the resampling.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    pairs = zip(ours, theirs, strict=True)
    ratios = np.array([statistics.median(a) / statistics.median(b) for a, b in pairs])
    drawn = np.random.default_rng(seed).choice(ratios, size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return statistics.geometric_mean(values)
