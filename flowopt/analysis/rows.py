"""Where the rows of a selection are in a value, and which arguments of an operator hold them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

Path = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows are in a value: on ``axis``, between ``outer`` and ``inner`` places that are merged with them.

    Attributes:
        axis: counted from 0.
        outer: product of the merged sizes before the rows, an expression.
        inner: of those behind them.
    """

    axis: int
    outer: Any = sympy.S.One
    inner: Any = sympy.S.One

    @property
    def stands_alone(self) -> bool:
        """True when the axis holds the rows and nothing else."""
        return bool(self.outer == 1 and self.inner == 1)

    def on(self, axis: int) -> "Place":
        """The same on another axis."""
        return Place(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Rows:
    """A selection: ``length`` neighbours out of ``count`` rows, an expression."""

    count: Any
    length: int


@dataclass(frozen=True, slots=True)
class Read:
    """An argument of which only the selected rows are read: its position, in a list two of them, and its rows."""

    path: Path
    source: fx.Node
    place: Place


@dataclass(frozen=True, slots=True)
class RowWise:
    """How an operator computes selected rows: from those of ``reads`` and from all of its other arguments.

    Attributes:
        reads: arguments that shrink.
        sizes: the new second argument of an operator that is told its output's sizes, else None.
    """

    reads: tuple[Read, ...]
    sizes: tuple[Any, ...] | None = None


def aligned(node: fx.Node, place: Place, arguments: Iterable[tuple[Path, Any]]) -> tuple[Read, ...] | None:
    """Of operands that are broadcast, aligned at their last axes, those with the rows; None when one is unclear.

    Args:
        node: what reads the operands; it has a row wherever one of them has.
        place: of the rows in its output.
        arguments: where each operand stands, and what it is.
    """
    if recorded_tensor(node) is None:
        return None  # several results
    found = []
    size = sizes_as_text(node)[place.axis]
    for path, operand in arguments:
        axis = place.axis - rank_of(node) + rank_of(operand)
        if not isinstance(operand, fx.Node) or recorded_tensor(operand) is None or axis < 0:
            continue
        if sizes_as_text(operand)[axis] == size:
            found.append(Read(path, operand, place.on(axis)))
        elif static_size(operand, axis) != 1:
            return None
    return tuple(found)


def read_at(path: Path, source: Any, place: Place) -> tuple[Read, ...]:
    """One argument that shrinks."""
    assert isinstance(source, fx.Node), "what an operator works on is a value"
    return (Read(path, source, place),)


def rank_of(node: Any) -> int:
    """Number of axes; of a tuple of tensors, that of the first; 0 for numbers."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    first = next(_tensors(value), None)
    return 0 if first is None else first.dim()


def _tensors(value: Any) -> Iterator[Tensor]:
    yield from (v for v in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(v, Tensor))


def axes_of(named: Any, rank: int = 0) -> list[int]:
    """Axes counted from 0; none when none are named."""
    axes = [named] if isinstance(named, int) else named or ()
    return [a % rank if rank else a for a in axes]


def argument(node: fx.Node, position: int, default: Any, name: str = "dim") -> Any:
    """What is given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
