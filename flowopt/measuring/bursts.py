"""One burst: calls back to back, the first ones untimed."""

import statistics
import time
from collections.abc import Callable
from typing import Any

_WARM_SECONDS = 0.02
_FEWEST = 3
_SLOW = 0.2


def burst(run: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each timed call.

    A processor that slept and a thread pool that stopped spinning take some milliseconds to be back at speed, so
    calls of that order are repeated first without counting. A slow one is timed from its first call on.

    Args:
        run: one call.
        seconds: how long to time; at least three calls of a fast model, and one of a slow one.
    """
    first = _timed(run)
    if first > _SLOW:
        more = int(seconds / first)
        return [first, *(_timed(run) for _ in range(more))]
    warm = [first]
    while sum(warm) < _WARM_SECONDS or len(warm) < _FEWEST:
        warm.append(_timed(run))
    count = max(_FEWEST, round(seconds / statistics.median(warm[1:])))
    return [_timed(run) for _ in range(count)]


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
