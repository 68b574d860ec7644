"""A kind of mistake: where it can be made, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import fx

from flowopt.rewrite import Edit, Exactness

Build = Callable[[Edit, fx.Node], fx.Node | None]
Eligible = Callable[[fx.Node], bool]

SPECIFIC: Final = 2
"""Sites per model of a kind that belongs to certain operators."""

GENERIC: Final = 1
"""Sites per model of a kind that fits nearly every operator."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of wrong rewrite.

    Attributes:
        name: in words with hyphens, unique.
        mistake: the wrong rewrite in one line.
        eligible: whether a node of a program is a site.
        build: makes the wrong value beside a node; None when it made its own claims.
        exactness: what the wrong pass declares.
        most: how many sites of one model are used.
    """

    name: str
    mistake: str
    eligible: Eligible
    build: Build
    exactness: Exactness = Exactness.EXACT
    most: int = SPECIFIC


def mutates(
    eligible: Eligible, *, most: int = SPECIFIC, exactness: Exactness = Exactness.EXACT
) -> Callable[[Build], Kind]:
    """Make a kind of a builder: its name and its docstring are the kind's.

    Args:
        eligible: whether a node is a site.
        most: sites per model.
        exactness: what the wrong pass declares.
    """

    def made(build: Build) -> Kind:
        name = getattr(build, "__name__", "").replace("_", "-")
        assert name and build.__doc__, "a kind is a function with a docstring"
        return Kind(name, build.__doc__.splitlines()[0], eligible, build, exactness, most)

    return made
