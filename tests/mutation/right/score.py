"""Verify every pair, and name those that are accused."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from flowopt.pipeline.runner import run_passes
from flowopt.verification.levels import Level
from flowopt.verification.verify_passes import VerifyPasses
from tests.mutation.right.kind import at_node
from tests.mutation.right.kinds import KINDS
from tests.mutation.right.models import program
from tests.mutation.right.pairs import Pair

_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Scored:
    """One pair, what verification said (``reason`` is empty when it was kept), and its processor time."""

    pair: Pair
    outcome: str
    reason: str
    seconds: float

    @property
    def is_kept(self) -> bool:
        return self.outcome == "kept"

    def __str__(self) -> str:
        return f"{self.pair}: {self.outcome}{f': {self.reason}' if self.reason else ''} ({self.seconds:.1f} s)"


def scored(pair: Pair, verifier: VerifyPasses) -> Scored:
    """Carry out one rewrite under a verifier, which may have judged others of the same model."""
    started = time.process_time()
    rewrite_pass = at_node(KINDS[pair.kind], pair.node)
    (record,) = run_passes(program(pair.model), [rewrite_pass], [verifier]).records
    return Scored(pair, record.outcome, record.reason, time.process_time() - started)


def score(
    pairs: Iterable[Pair], *, level: Level = "full", on_pair: Callable[[Scored], None] | None = None
) -> list[Scored]:
    """Verify pairs in two processes, one model and seed after the other: what is known of a model is kept.

    Args:
        pairs: in any order.
        level: of verification.
        on_pair: called with every result, for progress.
    """
    ordered = sorted(pairs, key=_group)
    groups = [list(group) for _, group in itertools.groupby(ordered, key=_group)]
    found: list[Scored] = []
    # Spawned, because a forked process inherits the thread pools of torch in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        # The longest first, so that no process is left alone with one at the end.
        waiting = [pool.submit(_scored_group, group, level) for group in sorted(groups, key=len, reverse=True)]
        for done in as_completed(waiting):
            for one in done.result():
                found.append(one)
                if on_pair is not None:
                    on_pair(one)
    return found


def _group(pair: Pair) -> tuple[str, int]:
    return pair.model, pair.seed


def _scored_group(pairs: list[Pair], level: Level) -> list[Scored]:
    verifier = VerifyPasses(seed=pairs[0].seed, level=level)
    return [scored(pair, verifier) for pair in pairs]
