"""Independent cases on several cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

from flowopt.ir.float64 import float64_by_default

T = TypeVar("T")
R = TypeVar("R")
# Fewer cases than this per worker are not worth reading every stored tensor once more.
_LEAST: Final = 2


def in_parallel(run: Callable[[Sequence[T]], list[R]], items: Sequence[T], *, raised: bool) -> list[R]:
    """``run`` over equal shares of ``items``, each on a core of its own; results in the order of the items.

    Operators on small tensors do not use a second core, and torch lets other Python threads go on while one computes.
    As many workers as torch was allowed threads, each with one thread.

    Args:
        run: results of a share, one per item.
        items: independent of each other.
        raised: torch's default dtype is float64 meanwhile. It belongs to the process: workers that set it and reset it
            at different times would give each other the wrong one.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items) // _LEAST)
    if workers < 2:
        return run(items)
    shares = [items[worker::workers] for worker in range(workers)]
    try:
        with float64_by_default(raised), ThreadPoolExecutor(workers, initializer=_one_thread) as pool:
            found = list(pool.map(run, shares))
    finally:
        # Part of torch's setting is the process's: a worker's number would stay.
        torch.set_num_threads(threads)
    results: list[R | None] = [None] * len(items)
    for worker, share in enumerate(found):
        results[worker::workers] = share
    return results  # type: ignore[return-value]  # every place was filled


def _one_thread() -> None:
    torch.set_num_threads(1)
