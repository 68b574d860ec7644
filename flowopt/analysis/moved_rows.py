"""Follow the rows of a selection through operators that only move values."""

import operator
from typing import Any

import sympy
import torch
from torch import fx

from flowopt.analysis.axes import axis_order
from flowopt.analysis.rows import Place, Rows, RowWise, aligned, argument, axes_of, rank_of, read_at
from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten
TUPLE_NORMS = frozenset({_aten.native_layer_norm.default, _aten._fused_rms_norm.default})
"Norms that give their statistics too."
_RESHAPES = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default}
_ORDERS = {_aten.permute.default, _aten.transpose.int, _aten.t.default}
_SQUEEZES = {_aten.squeeze.dim, _aten.squeeze.dims}
_SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default}
_EXPAND, _UNBIND = _aten.expand.default, _aten.unbind.int
_UNSQUEEZE, _SELECT, _SLICE = _aten.unsqueeze.default, _aten.select.int, _aten.slice.Tensor
_MOVES = {*_RESHAPES, *_ORDERS, *_SQUEEZES, *_SPLITS, _EXPAND, _UNBIND, _UNSQUEEZE, _SELECT, _SLICE}


def is_move(node: fx.Node) -> bool:
    """True for an operator that only moves values: to have it twice costs nothing."""
    return node.target in _MOVES or node.target is operator.getitem


def moved_rows(node: fx.Node, place: Place, rows: Rows) -> RowWise | None:
    """How a move gives selected rows from those of what it moves; None when it does not keep them apart.

    Args:
        node: the move; of one that gives a tuple, ``place`` is that in all of its elements.
        place: of the rows in its output.
        rows: which part is selected.
    """
    if node.target in _RESHAPES:
        return _reshaped(node, place, rows)
    if node.target is _EXPAND:
        return _expanded(node, place, rows)
    at = _moved_place(node, place)
    return None if at is None else RowWise(read_at((0,), node.args[0], at))


def _moved_place(node: fx.Node, place: Place) -> Place | None:
    target, axis = node.target, place.axis
    source: Any = node.args[0]
    order, rank = axis_order(node), rank_of(source)
    if target is operator.getitem:
        # A norm's statistics have other axes.
        is_element = source.target in _SPLITS or source.target is _UNBIND
        return place if is_element or (source.target in TUPLE_NORMS and node.args[1] == 0) else None
    if order is not None:
        return place.on(order[axis])
    if target in _SQUEEZES:
        named = axes_of(node.args[1], rank)
        kept = [a for a in range(rank) if a not in named or static_size(source, a) != 1]
        # One row that is left would be squeezed too.
        return None if kept[axis] in named else place.on(kept[axis])
    (at,) = axes_of(argument(node, 2 if target in _SPLITS else 1, 0), rank + (target is _UNSQUEEZE))
    if target is _UNSQUEEZE:
        return None if at == axis else place.on(axis - (at < axis))
    if target is _SELECT or target is _UNBIND:
        return place.on(axis + (at <= axis))
    return place if at != axis else None


def _reshaped(node: fx.Node, place: Place, rows: Rows) -> RowWise | None:
    """The rows are where as many elements stand before them, alone or merged with axes on either side."""
    source: Any = node.args[0]
    before, after = _expressions(source), _expressions(node)
    if 0 in before:
        return None
    position, passed = sympy.prod(after[: place.axis]) * place.outer, sympy.S.One
    for axis, size in enumerate(before):
        outer, inner = position / passed, passed * size / (position * rows.count)
        if _is_whole(outer) and _is_whole(inner):
            sizes = _sizes(node, place, rows)
            read = read_at((0,), source, Place(axis, outer, inner))
            return None if sizes is None else RowWise(read, sizes)
        passed *= size
    return None


def _sizes(node: fx.Node, place: Place, rows: Rows) -> tuple[Any, ...] | None:
    """A reshape's sizes for selected rows."""
    sizes = [*node.args[1]]  # type: ignore[misc]  # a list of sizes
    size = _narrow_size(place, rows)
    if size is None:
        # To be found from the others, which must all be said then.
        sizes = [static_size(node, a) if s == -1 and a != place.axis else s for a, s in enumerate(sizes)]
        size = -1
    sizes[place.axis] = size
    return None if None in sizes else tuple(sizes)


def _expanded(node: fx.Node, place: Place, rows: Rows) -> RowWise | None:
    reads = aligned(node, place, [((0,), node.args[0])])
    # -1 keeps the source's size.
    size = -1 if reads else _narrow_size(place, rows)
    if reads is None or size is None:
        return None
    sizes = [*node.args[1]]  # type: ignore[misc]  # a list of sizes
    sizes[place.axis] = size
    return RowWise(reads, tuple(sizes))


def _narrow_size(place: Place, rows: Rows) -> int | None:
    size = place.outer * rows.length * place.inner
    return int(size) if size.is_Integer else None


def _expressions(node: fx.Node) -> list[Any]:
    value = recorded_tensor(node)
    assert value is not None  # a reshape gives a tensor
    return [sympy.Integer(s) if isinstance(s, int) else s.node.expr for s in value.shape]


def _is_whole(quotient: Any) -> bool:
    """True for a product of sizes that nothing divides."""
    return bool(quotient.as_numer_denom()[1] == 1)
