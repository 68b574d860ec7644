"""Tensors of positions, and conditions that hold at all of them.

Exporters write a mask as a condition on grids of positions (``arange``), one per axis, and gather what a sample says
of each position through such grids. Where a grid is known to count from a number in steps of one, comparisons with
numbers below it always hold, and gathering by it reads what lies there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.axes import axis_order
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text

_aten = torch.ops.aten
_SAME = (_aten.alias.default, _aten.clone.default, _aten.detach.default, _aten.lift_fresh_copy.default)
_ORDERS = (_aten.permute.default, _aten.transpose.int, _aten.t.default)
_MOVES = (
    *_SAME,
    *_ORDERS,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.expand.default,
    _aten.view.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.select.int,
)
ANDS = (_aten.__and__.Tensor, _aten.bitwise_and.Tensor, _aten.logical_and.default)
_ORS = (_aten.__or__.Tensor, _aten.bitwise_or.Tensor, _aten.logical_or.default)
_ONES = (_aten.ones.default, _aten.ones_like.default, _aten.new_ones.default)
_FILLED = (_aten.full.default, _aten.full_like.default, _aten.new_full.default)


@dataclass(frozen=True, slots=True)
class Positions:
    """A tensor whose value at an index is ``start`` plus the index along ``axis`` (counted from 0)."""

    axis: int
    start: int


def positions(node: Any) -> Positions | None:
    """What positions a node holds; None where it holds anything else, or that cannot be told."""
    value = recorded_tensor(node)
    if value is None or value.dtype not in (torch.int64, torch.int32) or node.op != "call_function":
        return None
    if node.target in (_aten.arange.default, _aten.arange.start, _aten.arange.start_step):
        return _counted(node)
    inner = positions(node.args[0]) if node.args else None
    if inner is None:
        return None
    if node.target in _SAME or node.target is _aten._to_copy.default:
        return inner
    if node.target in (_aten.add.Tensor, _aten.sub.Tensor):
        return _shifted(node, inner)
    if node.target is _aten.unsqueeze.default:
        axis = int(node.args[1]) % value.dim()
        return replace(inner, axis=inner.axis + (axis <= inner.axis))
    if node.target in _ORDERS:
        order = axis_order(node)
        return None if order is None else replace(inner, axis=list(order).index(inner.axis))
    if node.target is _aten.expand.default:
        return _expanded(node, inner)
    return None


def always_holds(node: Any, constant: Callable[[fx.Node], Tensor]) -> bool:
    """Whether a tensor of truth values is known to be true everywhere, whatever the inputs.

    Args:
        node: any argument of an operator.
        constant: the value of a parameter-only node.
    """
    value = recorded_tensor(node)
    if value is None or value.dtype != torch.bool:
        return False
    if is_parameter_only(node):
        return bool(constant(node).bool().all())
    target, args = node.target, node.args
    if target in _ONES:
        return True
    if target in _FILLED:
        return args[-1] is True or args[-1] == 1
    if target in (_aten.ge.Scalar, _aten.gt.Scalar, _aten.ne.Scalar):
        return _is_above(node)
    if target in ANDS:
        return all(always_holds(a, constant) for a in args[:2])
    if target in _ORS:
        return any(always_holds(a, constant) for a in args[:2])
    return target in _MOVES and always_holds(args[0], constant)


def _counted(node: fx.Node) -> Positions | None:
    """An arange in steps of one from a known number. ``arange(end)`` starts at 0."""
    start, step = 0, 1
    if node.target is not _aten.arange.default:
        start = node.args[0]  # type: ignore[assignment]  # checked below
        step = node.args[2] if len(node.args) > 2 else node.kwargs.get("step", 1)  # type: ignore[assignment]
    is_whole = type(start) is int and type(step) is int
    return Positions(0, start) if is_whole and step == 1 else None


def _shifted(node: fx.Node, inner: Positions) -> Positions | None:
    other = node.args[1]
    if type(other) is not int or node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
        return None
    return replace(inner, start=inner.start + (other if node.target is _aten.add.Tensor else -other))


def _expanded(node: fx.Node, inner: Positions) -> Positions | None:
    """The axis of positions may only be repeated as a whole: one position repeated is no count."""
    before, after = sizes_as_text(node.args[0]), sizes_as_text(node)
    axis = inner.axis + len(after) - len(before)
    return Positions(axis, inner.start) if before[inner.axis] == after[axis] else None


def _is_above(node: fx.Node) -> bool:
    found, number = positions(node.args[0]), node.args[1]
    if found is None or not isinstance(number, (int, float)):
        return False
    return found.start >= number if node.target is _aten.ge.Scalar else found.start > number
