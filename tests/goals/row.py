"""One promise of the project, measured."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """A row's value as printed, whether it meets the goal (None: it could not be run here), and what fell short."""

    value: str
    is_met: bool | None
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A promise: its name, its goal in words, and how to measure it. Long rows keep their last result."""

    name: str
    goal: str
    measure: Callable[[], Measured]
    is_long: bool = False


def counted(outcomes: dict[str, str]) -> tuple[int, tuple[str, ...]]:
    """How many outcomes are empty (nothing fell short), and a line for each of the others."""
    short = tuple(f"{name}: {problem}" for name, problem in outcomes.items() if problem)
    return len(outcomes) - len(short), short


def problem_of(check: Callable[[], None]) -> str:
    """Empty when the check passes, else the first line of why not."""
    try:
        check()
    except AssertionError as error:
        return (str(error).splitlines() or ["assertion failed"])[0]
    return ""
