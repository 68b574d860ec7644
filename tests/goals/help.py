"""How long ``flowopt --help`` takes, and what of it is Python's own start."""

import statistics
import subprocess
import sys
import time

_RUNS = 5


def measure() -> tuple[float, float]:
    """Seconds of ``flowopt --help`` in a fresh process and of an empty interpreter: medians of alternated runs."""
    help_seconds, empty_seconds = [], []
    for _ in range(_RUNS):
        help_seconds.append(_seconds("-m", "flowopt.cli.main", "--help"))
        empty_seconds.append(_seconds("-c", "pass"))
    return statistics.median(help_seconds), statistics.median(empty_seconds)


def _seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
