"""From which length on a linear stand-in is faster than softmax attention, out of times at some lengths.

Between two lengths, and beyond the last ones, a time is the straight line through its neighbours where both axes are
logarithmic: a power of the length.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any, final

from flowopt.measuring.rounds import alternated

SOFTMAX = "softmax"
LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Milliseconds:
    """Times of both at one length.

    Attributes:
        softmax, linear: milliseconds of one call.
        is_extrapolated: the length lies outside of those that were timed.
    """

    softmax: float
    linear: float
    is_extrapolated: bool


@dataclass(frozen=True, slots=True)
class Crossover:
    """Softmax attention and a stand-in for it, timed side by side.

    Attributes:
        lengths: that were timed, two or more, rising.
        softmax_ms: milliseconds of one call at each length.
        linear_ms: of the stand-in.
    """

    lengths: tuple[int, ...]
    softmax_ms: tuple[float, ...]
    linear_ms: tuple[float, ...]

    @property
    def length(self) -> float | None:
        """The length from which the stand-in is faster at all lengths that were timed; None where the last is not one.

        Where it is faster at all of them, the first: what lies below was not timed.
        """
        # Above 0: slower.
        logs = [log(linear / softmax) for softmax, linear in zip(self.softmax_ms, self.linear_ms, strict=True)]
        if logs[-1] >= 0:
            return None
        for at in reversed(range(len(logs) - 1)):
            if logs[at] >= 0:
                share = logs[at] / (logs[at] - logs[at + 1])
                return exp(log(self.lengths[at]) + share * (log(self.lengths[at + 1]) - log(self.lengths[at])))
        return float(self.lengths[0])

    def milliseconds(self, length: int) -> Milliseconds:
        """What one call of each takes at a length."""
        return Milliseconds(
            _at(self.lengths, self.softmax_ms, length),
            _at(self.lengths, self.linear_ms, length),
            is_extrapolated=not self.lengths[0] <= length <= self.lengths[-1],
        )


def measured_crossover(
    runs: Mapping[str, Callable[[int], Callable[[], Any]]],
    lengths: Sequence[int],
    *,
    budget_seconds: float,
    rounds: int = 5,
    burst_seconds: float = 0.03,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Crossover:
    """Time softmax attention and its stand-in, length by length, each length by turns.

    The best call counts: it is the one that other work on the machine disturbed least.

    Args:
        runs: under ``SOFTMAX`` and ``LINEAR``: what makes one call of a length.
        lengths: two or more; longer ones are left out once the next would exceed the budget, after the first two.
        budget_seconds: of all together. Softmax at the next length is taken for as costly as the square says.
        rounds: of each length.
        burst_seconds: of one burst.
        on_progress: gets one line per length.
    """
    timed: list[int] = []
    best: dict[str, list[float]] = {SOFTMAX: [], LINEAR: []}
    started = time.monotonic()
    for length in sorted(set(lengths)):
        left = budget_seconds - (time.monotonic() - started)
        if len(timed) > 1 and _expected(timed, best, length, rounds, burst_seconds) > left:
            break
        on_progress(f"timing attention at length {length}")
        workers = {name: _Here(run(length)) for name, run in runs.items()}
        found = alternated(workers, rounds, burst_seconds, {})
        timed.append(length)
        for name, bursts in found.items():
            best[name].append(1e3 * min(map(min, bursts)))
    return Crossover(tuple(timed), tuple(best[SOFTMAX]), tuple(best[LINEAR]))


@final
@dataclass(frozen=True, slots=True)
class _Here:
    """A call that is timed in this process: as often as fits into a burst, but once at least."""

    run: Callable[[], Any]

    def burst(self, seconds: float) -> list[float]:
        times: list[float] = []
        while not times or sum(times) < seconds:
            started = time.perf_counter()
            self.run()
            times.append(time.perf_counter() - started)
        return times


def _expected(
    timed: Sequence[int], best: Mapping[str, Sequence[float]], length: int, rounds: int, burst_seconds: float
) -> float:
    """Seconds that a length will take, at most, where the slower one goes with the square of the length."""
    slowest = max(known[-1] for known in best.values()) / 1e3 * (length / timed[-1]) ** 2
    return rounds * len(best) * (burst_seconds + slowest)


def _at(lengths: Sequence[int], times: Sequence[float], length: int) -> float:
    """The power of the length through the neighbours; outside, that of the last two, where it is one of attention's."""
    points = list(zip(lengths, times, strict=True))
    before, after = next((pair for pair in pairwise(points) if length <= pair[1][0]), points[-2:])
    power = log(after[1] / before[1]) / log(after[0] / before[0])
    if length < before[0]:
        power = min(max(power, 0.0), 2.0)
    origin = before
    if length > after[0]:
        # Attention is neither below linear nor above quadratic; times that disturbance made may be.
        power, origin = min(max(power, 1.0), 2.0), after
    return origin[1] * exp(power * log(length / origin[0]))
