"""Follow a feature axis through operators that only move values around."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten

# Every element keeps its place and its value (a change of floating dtype rounds it, no more).
_SAME_PLACE = {
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten.lift_fresh_copy.default,
    _aten._to_copy.default,
    _aten.to.dtype,
    _aten.type_as.default,
}
_RESHAPES = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default}
_SQUEEZES = {_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims}
_SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.unbind.int}


@dataclass(frozen=True, slots=True)
class FeatureAxis:
    """Where the features are in a value: on ``axis`` (counted from 0), features ``start`` to ``stop``."""

    axis: int
    start: int
    stop: int


def feature_axis(node: fx.Node, axis: int) -> FeatureAxis | None:
    """All features of ``node`` along ``axis``; None when that size is not known at capture."""
    size, value = static_size(node, axis), recorded_tensor(node)
    if size is None or value is None:
        return None
    return FeatureAxis(axis % value.dim(), 0, size)


def follow(node: fx.Node, source: fx.Node, at: FeatureAxis) -> FeatureAxis | None:
    """Where the features of ``source`` are in ``node``, which reads it; None when ``node`` does more than move them.

    A split yields several values: its own position is that of ``source``, and ``follow`` of each ``getitem``
    gives the part.
    """
    target, args = node.target, node.args
    if not args or args[0] is not source or node.all_input_nodes.count(source) != 1:
        return None
    if target in _SAME_PLACE:
        return at if _keeps_floating(node, source) else None
    if target in _RESHAPES:
        return _through_reshape(node, source, at)
    if target in _SPLITS:
        return at
    if target is operator.getitem:
        return _through_getitem(node, source, at)
    order = axis_order(node)
    if order is not None:
        return FeatureAxis(order.index(at.axis), at.start, at.stop)
    if target is _aten.unsqueeze.default:
        at_axis = _positive(_int(args[1]), _rank(source) + 1)
        return FeatureAxis(at.axis + (at_axis <= at.axis), at.start, at.stop)
    if target is _aten.select.int:
        return _without([_axis(node, source, 1)], at)
    if target in _SQUEEZES:
        return _through_squeeze(node, source, at)
    if target is _aten.expand.default:
        moved_axis = at.axis + _rank(node) - _rank(source)
        kept = static_size(node, moved_axis) == static_size(source, at.axis)
        return FeatureAxis(moved_axis, at.start, at.stop) if kept else None
    if target is _aten.slice.Tensor:
        return _through_slice(node, source, at)
    return None


def axis_order(node: fx.Node) -> tuple[int, ...] | None:
    """For a transpose or a permutation, the axis of its input that each of its axes shows; None for all others."""
    source = node.args[0] if node.args else None
    rank = _rank(source) if isinstance(source, fx.Node) else -1
    if node.target is _aten.permute.default:
        return tuple(_positive(d, rank) for d in _sequence(node.args[1]))
    if node.target is _aten.t.default:
        return tuple(reversed(range(rank)))
    if node.target is not _aten.transpose.int or not isinstance(source, fx.Node):
        return None
    order = list(range(rank))
    first, second = _axis(node, source, 1), _axis(node, source, 2)
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def _keeps_floating(node: fx.Node, source: fx.Node) -> bool:
    before, after = recorded_tensor(source), recorded_tensor(node)
    return before is not None and after is not None and before.is_floating_point() and after.is_floating_point()


def _through_reshape(node: fx.Node, source: fx.Node, at: FeatureAxis) -> FeatureAxis | None:
    """An axis survives a reshape when an axis of its size has the same number of elements behind it."""
    before, after = recorded_tensor(source), recorded_tensor(node)
    if before is None or after is None:
        return None
    # Free sizes behind the axis cannot be counted; but where everything up to it is as it was, they need not be.
    if list(map(str, before.shape[: at.axis + 1])) == list(map(str, after.shape[: at.axis + 1])):
        return at
    behind = before.shape[at.axis + 1 :]
    if not all(isinstance(s, int) for s in (*behind, before.shape[at.axis])):
        return None
    behind_count, behind_after = math.prod(behind), 1
    for axis in reversed(range(after.dim())):
        size = after.shape[axis]
        if not isinstance(size, int):
            return None
        if behind_after == behind_count and size == before.shape[at.axis]:
            return FeatureAxis(axis, at.start, at.stop)
        behind_after *= size
        if behind_after > behind_count and size != 1:
            return None
    return None


def _through_getitem(node: fx.Node, split: fx.Node, at: FeatureAxis) -> FeatureAxis | None:
    if split.target not in _SPLITS:
        return None
    original = split.args[0]
    if not isinstance(original, fx.Node):
        return None
    is_unbind = split.target is _aten.unbind.int
    axis = _positive(_int(_argument(split, 1 if is_unbind else 2, "dim", 0)), _rank(original))
    if is_unbind:
        return _without([axis], at)
    if axis != at.axis:
        return at
    parts = split.meta.get("val")
    index = _int(node.args[1])
    if not isinstance(parts, (list, tuple)) or index < 0:
        return None
    sizes = [p.shape[axis] for p in parts]
    if not all(isinstance(s, int) for s in sizes):
        return None
    start = at.start + sum(sizes[:index])
    return FeatureAxis(at.axis, start, start + sizes[index])


def _through_squeeze(node: fx.Node, source: fx.Node, at: FeatureAxis) -> FeatureAxis | None:
    """Squeeze removes the axes of size 1 among those it names, or among all; a free size is not 1."""
    named = node.args[1] if len(node.args) > 1 else range(_rank(source))
    axes = {_positive(a, _rank(source)) for a in ([named] if isinstance(named, int) else _sequence(named))}
    return _without([a for a in axes if static_size(source, a) == 1], at)


def _without(axes: Sequence[int], at: FeatureAxis) -> FeatureAxis | None:
    if at.axis in axes:
        return None
    return FeatureAxis(at.axis - sum(a < at.axis for a in axes), at.start, at.stop)


def _through_slice(node: fx.Node, source: fx.Node, at: FeatureAxis) -> FeatureAxis | None:
    axis = _positive(_int(_argument(node, 1, "dim", 0)), _rank(source))
    if axis != at.axis:
        return at
    size = static_size(node, axis)
    width = at.stop - at.start
    start, step = _argument(node, 2, "start", None) or 0, _argument(node, 4, "step", 1)
    if size is None or step != 1 or not isinstance(start, int):
        return None
    # As in Python: a start before the first feature is the first feature.
    first = at.start + min(max(start + width, 0) if start < 0 else start, width)
    return FeatureAxis(at.axis, first, first + size)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _axis(node: fx.Node, source: fx.Node, position: int) -> int:
    return _positive(_int(_argument(node, position, "dim", 0)), _rank(source))


def _positive(axis: int, rank: int) -> int:
    return axis % rank if rank else 0


def _rank(node: fx.Node) -> int:
    value = recorded_tensor(node)
    return -1 if value is None else value.dim()


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _sequence(value: Any) -> Sequence[int]:
    return [int(v) for v in value] if isinstance(value, (list, tuple, range)) else []
