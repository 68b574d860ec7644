"""Find what reads a value in the end, through operators that only move it around."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from flowopt.analysis.axes import FeatureAxis, follow


@dataclass(frozen=True, slots=True)
class Reader:
    """One operator that reads a value, directly or through a path of moving operators.

    Attributes:
        node: the operator that does more than move the value.
        source: the node it reads: the value itself or the last of ``path``.
        path: moving operators from the value to the reader, in order.
        at: where the value's features are in ``source``.
    """

    node: fx.Node
    source: fx.Node
    path: tuple[fx.Node, ...]
    at: FeatureAxis


def readers(value: fx.Node, at: FeatureAxis) -> Iterator[Reader]:
    """Every reader of ``value``, in graph order of the first step; a reader twice when it reads by two paths."""
    yield from _readers(value, at, ())


def _readers(value: fx.Node, at: FeatureAxis, path: tuple[fx.Node, ...]) -> Iterator[Reader]:
    for user in value.users:
        moved = follow(user, value, at)
        if moved is None:
            yield Reader(user, value, path, at)
        else:
            yield from _readers(user, moved, (*path, user))
