"""A candidate's answer does not depend on the number of threads."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import torch

from flowopt.report.verdict import Finding
from flowopt.verification.behaviour.answers import GATE, Answer, Runner, ask, differences, fresh, gated
from flowopt.verification.evidence import CaseEvidence


def check_threads(
    known: CaseEvidence,
    first: Answer,
    run: Runner,
    *,
    counts: Sequence[int] | None = None,
    with_threads: Callable[[int], Runner] | None = None,
    repeats: bool = True,
) -> Iterator[Finding]:
    """With each number of threads, two calls give the same bits, and pass the rounding gate.

    Args:
        known: evidence of the case.
        first: the candidate's answer to it with the present number of threads.
        run: the candidate.
        counts: numbers of threads; None: one, and as many as this process may use.
        with_threads: opens the candidate with a number of threads; None: torch's number counts.
        repeats: with the present number, calls gave the same bits; where they did not, that is known already.
    """
    present = torch.get_num_threads() if with_threads is None else None
    for count in dict.fromkeys(counts if counts is not None else (1, usable_threads())):
        with contextlib.nullcontext() if present is None else _torch_threads(count):
            runner = run if with_threads is None else with_threads(count)
            one = first if count == present else ask(runner, fresh(known.case.inputs))
            # A single thread runs no race.
            two = ask(runner, fresh(known.case.inputs)) if repeats and count > 1 else one
        what = f"with {count} thread{'s' if count > 1 else ''}"
        if count != present:
            yield from gated(known, one, what, lambda: first)
        for name, message in ({} if one.problem else differences(known, one, two)).items():
            message = f"{what}, two calls with the same inputs differ: {message}"
            yield Finding(GATE, name, known.case.label, message)
            break


def usable_threads() -> int:
    """Processors that this process may use; where the system does not tell, all of them."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    present = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(present)
