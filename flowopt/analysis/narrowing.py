"""The operators before a selection of rows that could compute the selected rows alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx

from flowopt.analysis.moved_rows import is_move
from flowopt.analysis.row_wise import COSTLY, row_wise
from flowopt.analysis.rows import Place, Read, Rows, RowWise
from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten
_TO_THE_END = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows ``start`` to ``stop`` along an axis of a value, ``length`` of ``count`` rows, an expression.

    Bounds count from the end where they are negative, and the largest integer is the end.
    """

    axis: int
    start: int
    stop: int
    length: int
    count: Any


@dataclass(frozen=True, slots=True)
class Narrowed:
    """An operator that is to compute selected rows alone, which are at ``place`` of its output."""

    node: fx.Node
    place: Place
    how: RowWise


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What a selection could move up through.

    Attributes:
        steps: operators that would compute selected rows alone, in graph order.
        freed: those of them that nobody would need whole any more.
        selections: the selection, and others that pick the same rows from one of the steps, with the axis of each.
        edges: values that stay whole, of which steps would read the selected rows.
        kept: those edges that would have joined but for another reader, which is given too; the last one first.
    """

    steps: tuple[Narrowed, ...]
    freed: frozenset[fx.Node]
    selections: tuple[tuple[fx.Node, int], ...]
    edges: frozenset[fx.Node]
    kept: tuple[tuple[fx.Node, fx.Node], ...]

    @property
    def saved(self) -> tuple[fx.Node, ...]:
        """The costly operators that would do less work."""
        return tuple(s.node for s in self.steps if s.node in self.freed and s.node.target in COSTLY)


def selection_of(node: fx.Node) -> Selection | None:
    """What a select, or a slice with constant bounds in steps of one, picks.

    None for other operators, for a slice whose length is free, and for one that certainly takes all rows.
    """
    source = node.args[0] if node.target in (_aten.select.int, _aten.slice.Tensor) else None
    value = recorded_tensor(source)
    if not isinstance(source, fx.Node) or value is None or recorded_tensor(node) is None:
        return None
    given: dict[str, Any] = dict(zip(("dim", "start", "end", "step"), node.args[1:], strict=False)) | node.kwargs
    axis = given.get("dim", 0) % value.dim()
    start, stop, length = _bounds(node, given, axis)
    count = static_size(source, axis)
    if not length or length == count or not isinstance(start, int) or not isinstance(stop, int):
        return None
    if count is not None:
        start, stop, _ = slice(start, stop).indices(count)
    size = value.shape[axis]
    return Selection(axis, start, stop, length, sympy.Integer(size) if isinstance(size, int) else size.node.expr)


def is_behind_costly(anchor: fx.Node, selection: Selection) -> bool:
    """True when the way up through row-wise operators leads to a costly one, whoever else reads what is on it."""
    rows = Rows(selection.count, selection.length)
    pending = [(_source(anchor), Place(selection.axis))]
    seen = set(pending)
    while pending:
        node, place = pending.pop()
        how = row_wise(node, place, rows)
        if how is not None and node.target in COSTLY:
            return True
        fresh = {(r.source, r.place) for r in how.reads} - seen if how is not None else set()
        seen |= fresh
        pending.extend(fresh)
    return False


def narrowing(anchor: fx.Node, selection: Selection) -> Narrowing:
    """All operators that a selection could move up through.

    An operator that costs something joins when everything that reads it has joined, so that nobody needs it whole.
    Moves join wherever the selected rows pass through them.

    Args:
        anchor: the selection.
        selection: what it picks.
    """
    found = _grown(anchor, selection, frozenset())
    kept, blocked = found.kept, set[fx.Node]()
    # A part of merged rows is no slice, and a tuple has none: what would read such a part stays whole.
    while stuck := {
        s.node for s in found.steps if any(r.source in found.edges and not _has_slice(r) for r in s.how.reads)
    }:
        blocked |= stuck
        found = _grown(anchor, selection, blocked)
    return replace(found, kept=kept)


def _grown(anchor: fx.Node, selection: Selection, blocked: Collection[fx.Node]) -> Narrowing:
    """The same where some operators are known to stay whole."""
    rows = Rows(selection.count, selection.length)
    wanted: dict[fx.Node, set[Place]] = {_source(anchor): {Place(selection.axis)}}
    steps: dict[fx.Node, Narrowed] = {}
    selections = {anchor: selection.axis}
    freed, edges = {anchor}, set[fx.Node]()
    needed_by, kept = dict[fx.Node, fx.Node](), list[tuple[fx.Node, fx.Node]]()
    for node in reversed(list(anchor.graph.nodes)):
        if node not in wanted:
            continue
        place, *others = wanted[node]
        how = None if others or node in blocked else row_wise(node, place, rows)
        agreeing = {u: place.axis for u in node.users if _agrees(u, selection, place)}
        whole = [u for u in node.users if u not in agreeing and not _reads_rows(u, node, place, steps, freed)]
        if whole:
            readers = [needed_by[u] if u in steps and u not in freed else u for u in whole]
            needed_by[node] = next((r for r in readers if r.op == "output"), readers[0])
        if how is None or (whole and not is_move(node)):
            edges.add(node)
            kept += [(node, needed_by[node])] if how is not None else []
            continue
        steps[node] = Narrowed(node, place, how)
        selections |= agreeing
        if not whole:
            freed.add(node)
        for read in how.reads:
            wanted.setdefault(read.source, set()).add(read.place)
    return Narrowing(
        steps=tuple(reversed(steps.values())),
        freed=frozenset(freed),
        selections=tuple(sorted(selections.items())),
        edges=frozenset(edges),
        kept=tuple(kept),
    )


def _reads_rows(
    user: fx.Node, node: fx.Node, place: Place, steps: Mapping[fx.Node, Narrowed], freed: set[fx.Node]
) -> bool:
    """True when nobody needs ``user`` whole, and it reads the selected rows of ``node`` alone, wherever it reads it."""
    if user not in freed or user not in steps:
        return False
    narrow = sum(read.source is node and read.place == place for read in steps[user].how.reads)
    reads: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), reads.append)
    return narrow == reads.count(node)


def _agrees(node: fx.Node, selection: Selection, place: Place) -> bool:
    other = selection_of(node) if place.stands_alone else None
    same = (other.axis, other.start, other.stop) if other is not None else None
    return same == (place.axis, selection.start, selection.stop)


def _has_slice(read: Read) -> bool:
    return read.place.stands_alone and recorded_tensor(read.source) is not None


def _bounds(node: fx.Node, given: Mapping[str, Any], axis: int) -> tuple[Any, Any, int | None]:
    """Start, stop and length; what is not constant is given as it is, and a length that is not known as None."""
    if node.target is _aten.slice.Tensor:
        start, stop = given.get("start"), given.get("end")
        length = static_size(node, axis) if given.get("step", 1) == 1 else None
        return 0 if start is None else start, _TO_THE_END if stop is None else stop, length
    index = node.args[2]
    stop = index + 1 if isinstance(index, int) and index != -1 else _TO_THE_END
    return index, stop, 1


def _source(selection: fx.Node) -> fx.Node:
    source = selection.args[0]
    assert isinstance(source, fx.Node)
    return source
