"""Alternate contenders: in every round each runs one burst, in an order that turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flowopt.measuring.process import ContenderFailedError
from flowopt.measuring.statistics import ratio

Bursts = dict[str, list[list[float]]]


class Bursting(Protocol):
    """What is alternated."""

    def burst(self, seconds: float) -> list[float]:
        """Seconds of each call; ContenderFailedError where it can no longer run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure.

    Attributes:
        burst: seconds of one burst.
        fewest: rounds before anything is decided.
        most: rounds after which it ends whatever the interval.
        width: of the interval of every ratio, below which it ends.
        budget: seconds after which it ends, once the fewest rounds ran.
    """

    burst: float = 0.1
    fewest: int = 12
    most: int = 200
    width: float = 0.06
    budget: float = 180.0


def alternated(workers: Mapping[str, Bursting], rounds: int, burst: float, lost: dict[str, str]) -> Bursts:
    """So many rounds of every worker.

    Args:
        workers: by name.
        rounds: how many.
        burst: seconds of one burst.
        lost: gets the name of each that can no longer run, and why; its bursts are left out of the result.
    """
    found: Bursts = {name: [] for name in workers}
    for number in range(rounds):
        _round(workers, number, burst, found, lost)
    return found


def until_sure(
    workers: Mapping[str, Bursting],
    ours: str,
    against: Sequence[str],
    plan: Plan,
    lost: dict[str, str],
    on_round: Callable[[int], None] = lambda _: None,
) -> Bursts:
    """Rounds until the interval of our time over each other's is as narrow as wanted, or the plan's end is reached.

    Args:
        workers: by name; ``ours`` and ``against`` among them.
        ours: whose time is divided.
        against: by whose times.
        plan: when to end.
        lost: as for ``alternated``; without ours it ends.
        on_round: gets the number of each round.
    """
    found: Bursts = {name: [] for name in workers}
    started = time.monotonic()
    for number in range(plan.most):
        on_round(number)
        _round(workers, number, plan.burst, found, lost)
        if ours in lost:
            break
        if number + 1 < plan.fewest:
            continue
        if time.monotonic() - started > plan.budget:
            break
        if all(ratio(found[ours], found[other]).width <= plan.width for other in against if other not in lost):
            break
    return found


def _round(workers: Mapping[str, Bursting], number: int, burst: float, found: Bursts, lost: dict[str, str]) -> None:
    names = list(workers)
    turned = [*names[number % len(names) :], *names[: number % len(names)]]
    # Every other round runs backwards: nobody always follows the same one.
    for name in turned if number % 2 == 0 else reversed(turned):
        if name not in found:
            continue
        try:
            found[name].append(workers[name].burst(burst))
        except ContenderFailedError as error:
            lost[name] = str(error)
            del found[name]
