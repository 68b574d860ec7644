"""Which feature of a layer's output stands at which place, through reshapes into heads, transposes and splits.

``flowopt.analysis.axes`` follows one axis that stays whole. Attention cuts the features into heads, swaps them with
the sequence, repeats them for grouped queries and puts them together again; here an axis may hold part of the
features, or several parts, or a part beside something else.
"""

import operator
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from flowopt.analysis.axes import axis_order
from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten
_CASTS = {_aten._to_copy.default, _aten.to.dtype, _aten.type_as.default}
_SAME_PLACE = {
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten.lift_fresh_copy.default,
}
_RESHAPES = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default}
_SQUEEZES = {_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims}
_SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.unbind.int}
_ORDERS = {_aten.permute.default, _aten.transpose.int, _aten.t.default}
_OTHERS = {_aten.unsqueeze.default, _aten.expand.default, _aten.slice.Tensor, _aten.select.int}
_REPEAT = _aten.repeat_interleave.self_int
MOVES = frozenset({*_CASTS, *_SAME_PLACE, *_RESHAPES, *_SQUEEZES, *_SPLITS, *_ORDERS, *_OTHERS, _REPEAT})


@dataclass(frozen=True, slots=True)
class Run:
    """``size`` neighbouring places whose features are ``stride`` apart; of stride 0, all show the same feature."""

    size: Any
    stride: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Runs of every axis, the outer ones first. The feature of a place is ``start`` and its steps along all runs.

    Sizes are expressions, so that free ones can be told apart.
    """

    axes: tuple[tuple[Run, ...], ...]
    start: int

    def features(self, *axes: int) -> tuple[int, ...]:
        """The feature at every place along these axes, row by row; of other axes the first place counts.

        Only axes of known size may be named.
        """
        found = [self.start]
        for axis in axes:
            for run in self.axes[axis]:
                found = [base + step * run.stride for base in found for step in range(int(run.size))]
        return tuple(found)

    def all_features(self) -> frozenset[int]:
        """Every feature that stands somewhere."""
        steps = Layout(tuple(tuple(r for r in runs if r.stride) for runs in self.axes), self.start)
        return frozenset(steps.features(*range(len(self.axes))))

    def holds(self, axis: int) -> bool:
        """True when places along this axis show different features."""
        return any(run.stride for run in self.axes[axis])

    def featured_axes(self) -> tuple[int, ...]:
        """The axes along which features differ."""
        return tuple(axis for axis in range(len(self.axes)) if self.holds(axis))


@dataclass(frozen=True, slots=True)
class PlacedReader:
    """One operator that does more than move a value, with the moves that lead to it.

    Attributes:
        node: the reader.
        source: the node that it reads: the value itself or the last of ``path``.
        path: moves from the value to the reader, in order.
        layout: of ``source``.
    """

    node: fx.Node
    source: fx.Node
    path: tuple[fx.Node, ...]
    layout: Layout


def initial_layout(node: fx.Node, axis: int) -> Layout | None:
    """All features of a layer's output along ``axis``; None when their number is free."""
    return None if static_size(node, axis) is None else layout_along(node, axis)


def layout_along(node: fx.Node, axis: int) -> Layout | None:
    """As ``initial_layout``, of any number of features; those of a free number stay together."""
    value = recorded_tensor(node)
    if value is None:
        return None
    axes = [runs_of(s, 0) for s in value.shape]
    axes[axis] = runs_of(value.shape[axis], 1)
    return Layout(tuple(axes), 0)


def runs_of(size: int | torch.SymInt, stride: int) -> tuple[Run, ...]:
    """The runs of an axis of one run; an axis of size 1 has none."""
    return _runs(_expression(size), stride)


def placed_readers(value: fx.Node, layout: Layout, path: tuple[fx.Node, ...] = ()) -> Iterator[PlacedReader]:
    """Every reader of ``value`` behind moves; what cannot be followed counts as a reader."""
    for user in value.users:
        moved = moved_layout(user, value, layout)
        if moved is None:
            yield PlacedReader(user, value, path, layout)
        else:
            yield from placed_readers(user, moved, (*path, user))


def moved_layout(node: fx.Node, source: fx.Node, layout: Layout) -> Layout | None:
    """Layout of ``node``, which reads ``source``; None when it does more than move values, or cannot be followed.

    A split has the layout of what it splits; that of each ``getitem`` is a part.
    """
    target, args = node.target, node.args
    if not args or args[0] is not source or node.all_input_nodes.count(source) != 1:
        return None
    if target is operator.getitem:
        return _part(node, source, layout)
    if target in _SPLITS:
        return layout
    before, after = recorded_tensor(source), recorded_tensor(node)
    if before is None or after is None or target not in MOVES:
        return None
    if target in _CASTS or target in _SAME_PLACE:
        return layout if before.is_floating_point() and after.is_floating_point() else None
    order = axis_order(node)
    if order is not None:
        return Layout(tuple(layout.axes[axis] for axis in order), layout.start)
    if target in _RESHAPES or target in _SQUEEZES or target is _aten.unsqueeze.default:
        axes = _regrouped(layout, [_expression(s) for s in after.shape])
        return None if axes is None else Layout(axes, layout.start)
    if target is _aten.expand.default:
        return _expanded(layout, before, after)
    if target is _REPEAT:
        return _repeated(node, layout, before)
    return _cut(node, layout, before, after)


def _runs(size: sympy.Expr, stride: int) -> tuple[Run, ...]:
    return () if size == 1 else (Run(size, stride),)


def _expression(size: int | torch.SymInt) -> sympy.Expr:
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def _quotient(size: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr | None:
    """``size / divisor`` when that is a whole number for all sizes."""
    if size == divisor:
        return sympy.Integer(1)
    quotient = sympy.cancel(size / divisor)
    return quotient if quotient.as_numer_denom()[1] == 1 else None


def _regrouped(layout: Layout, shape: list[sympy.Expr]) -> tuple[tuple[Run, ...], ...] | None:
    """The runs, in order, dealt out to axes of new sizes; a run may be cut in two."""
    left = deque(run for runs in layout.axes for run in runs)
    axes = []
    for size in shape:
        wanted, group = size, []
        while wanted != 1:
            if not left:
                return None
            run = left.popleft()
            rest = _quotient(wanted, run.size)
            if rest is None:
                inner = _quotient(run.size, wanted)
                if inner is None or (run.stride and not inner.is_Integer):
                    return None
                left.appendleft(Run(inner, run.stride))
                run, rest = Run(wanted, run.stride * int(inner) if run.stride else 0), sympy.Integer(1)
            group.append(run)
            wanted = rest
        axes.append(tuple(group))
    return None if left else tuple(axes)


def _expanded(layout: Layout, before: Tensor, after: Tensor) -> Layout | None:
    new = after.dim() - before.dim()
    axes: list[tuple[Run, ...]] = []
    for axis, size in enumerate(map(_expression, after.shape)):
        old = _expression(before.shape[axis - new]) if axis >= new else sympy.Integer(1)
        if old == size:
            axes.append(layout.axes[axis - new] if axis >= new else ())
        elif old == 1:
            axes.append(_runs(size, 0))
        else:
            return None
    return Layout(tuple(axes), layout.start)


def _repeated(node: fx.Node, layout: Layout, before: Tensor) -> Layout | None:
    times, axis = node.args[1], _argument(node, 2, "dim", None)
    if not isinstance(times, int) or not isinstance(axis, int):
        return None
    axes = list(layout.axes)
    axes[axis % before.dim()] += _runs(sympy.Integer(times), 0)
    return Layout(tuple(axes), layout.start)


def _cut(node: fx.Node, layout: Layout, before: Tensor, after: Tensor) -> Layout | None:
    """A slice or a selection."""
    axis = int(_argument(node, 1, "dim", 0)) % before.dim()
    first = _argument(node, 2, "index" if node.target is _aten.select.int else "start", None) or 0
    if node.target is _aten.select.int:
        cut = _narrowed(layout, axis, first, None)
        return None if cut is None else Layout((*cut.axes[:axis], *cut.axes[axis + 1 :]), cut.start)
    if _argument(node, 4, "step", 1) != 1 and layout.holds(axis):
        return None
    size = before.shape[axis]
    if isinstance(first, int) and isinstance(size, int):
        # As in Python: a start before the first place is the first place.
        first = min(max(first + size, 0) if first < 0 else first, size)
    return _narrowed(layout, axis, first, _expression(after.shape[axis]))


def _part(node: fx.Node, split: fx.Node, layout: Layout) -> Layout | None:
    parts, index, original = split.meta.get("val"), node.args[1], split.args[0]
    whole = recorded_tensor(original)
    if split.target not in _SPLITS or not isinstance(parts, (list, tuple)) or not isinstance(index, int):
        return None
    if whole is None or index < 0:
        return None
    is_unbind = split.target is _aten.unbind.int
    axis = int(_argument(split, 1 if is_unbind else 2, "dim", 0)) % whole.dim()
    if is_unbind:
        cut = _narrowed(layout, axis, index, None)
        return None if cut is None else Layout((*cut.axes[:axis], *cut.axes[axis + 1 :]), cut.start)
    first = sum(part.shape[axis] for part in parts[:index])
    return _narrowed(layout, axis, first, _expression(parts[index].shape[axis]))


def _narrowed(layout: Layout, axis: int, first: object, size: sympy.Expr | None) -> Layout | None:
    """``size`` places of one axis from the ``first`` on; of size None, that place alone."""
    runs, axes = layout.axes[axis], list(layout.axes)
    if not layout.holds(axis):
        axes[axis] = () if size is None else _runs(size, 0)
        return Layout(tuple(axes), layout.start)
    if not isinstance(first, int) or not all(run.size.is_Integer for run in runs):
        return None
    outer, *inner = runs
    behind = 1
    for run in inner:
        behind *= int(run.size)
    length = int(outer.size) * behind
    first = first + length if first < 0 else first
    if size is None:
        return Layout((*axes[:axis], (), *axes[axis + 1 :]), layout.features(axis)[first])
    # Several runs stay runs where whole turns of the outer one are taken.
    if not size.is_Integer or first % behind or int(size) % behind:
        return None
    axes[axis] = tuple(r for r in (Run(sympy.Integer(int(size) // behind), outer.stride), *inner) if r.size != 1)
    return Layout(tuple(axes), layout.start + first // behind * outer.stride)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
