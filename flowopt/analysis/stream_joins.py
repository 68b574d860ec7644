"""Operators inside of a residual stream: they add, move and scale whole feature vectors, and commute with centring.

A stream is made of vectors of one size that stand along one axis. An operator belongs to it when each vector that it
gives is a sum of vectors that it reads, times numbers that are the same for all of a vector's features.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from flowopt.analysis.axes import FeatureAxis, follow
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

_aten = torch.ops.aten
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_PRODUCTS = (_aten.mul.Tensor, _aten.div.Tensor)
_SPLITS = (_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.unbind.int)
_SELECTED, _CHOSEN, _JOINED, _TURNED = (
    _aten.index_select.default,
    _aten.where.self,
    _aten.cat.default,
    _aten.roll.default,
)
_TOTALS = (_aten.mean.dim, _aten.sum.dim_IntList)

Carried = tuple[tuple[fx.Node, int], ...]


def carried(node: fx.Node, axis: int) -> Carried | None:
    """The values whose vectors ``node`` adds, moves or scales to its own along ``axis``, with the axis of each.

    A value that is read twice is given twice.

    Returns:
        None when the operator does anything else: it writes the vectors, or reads them.
    """
    if node.op != "call_function" or recorded_tensor(node) is None:
        return None
    if node.target in _SUMS:
        return _all(node, axis, node.args[:2])
    if node.target is _CHOSEN:
        return _all(node, axis, node.args[1:3]) if _is_same_for_all(node, axis, node.args[0]) else None
    if node.target in _PRODUCTS:
        return _scaled(node, axis)
    if node.target is _aten.neg.default:
        return _all(node, axis, node.args[:1])
    if node.target is _JOINED:
        return _joined(node, axis)
    if node.target in (_TURNED, _SELECTED):
        return _turned(node, axis)
    if node.target in _TOTALS:
        return _totalled(node, axis)
    return _moved(node, axis)


def carried_axis(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """The axis of ``node`` along which it carries the vectors of ``source``; None where it does not."""
    if recorded_tensor(node) is None:
        return None
    candidates = range(len(sizes_as_text(node)))
    size = sizes_as_text(source)[axis]
    for candidate in candidates:
        if sizes_as_text(node)[candidate] == size:
            found = carried(node, candidate)
            if found is not None and (source, axis) in found:
                return candidate
    return None


def _all(node: fx.Node, axis: int, operands: tuple[Any, ...]) -> Carried | None:
    """Operands that all have the vectors, as broadcasting aligns them."""
    found = []
    for operand in operands:
        at = _aligned(node, axis, operand)
        if at is None:
            return None
        found.append((operand, at))
    return tuple(found)


def _aligned(node: fx.Node, axis: int, operand: Any) -> int | None:
    """The axis of an operand that stands at ``axis`` of the result, where it has the same size."""
    if not isinstance(operand, fx.Node):
        return None
    result, sizes = sizes_as_text(node), sizes_as_text(operand)
    at = axis - len(result) + len(sizes)
    value = recorded_tensor(operand)
    is_floating = value is not None and value.is_floating_point()
    return at if is_floating and at >= 0 and sizes[at] == result[axis] else None


def _is_same_for_all(node: fx.Node, axis: int, operand: Any) -> bool:
    """Whether an operand is a number, or broadcast along the axis of features."""
    if not isinstance(operand, fx.Node):
        return isinstance(operand, (int, float))
    sizes = sizes_as_text(operand)
    at = axis - len(sizes_as_text(node)) + len(sizes)
    return recorded_tensor(operand) is not None and (at < 0 or sizes[at] == "1")


def _scaled(node: fx.Node, axis: int) -> Carried | None:
    sides = [node.args[:2]] if node.target is _aten.div.Tensor else [node.args[:2], node.args[1::-1]]
    for value, factor in sides:
        if _is_same_for_all(node, axis, factor):
            return _all(node, axis, (value,))
    return None


def _joined(node: fx.Node, axis: int) -> Carried | None:
    parts = node.args[0]
    along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    rank = len(sizes_as_text(node))
    if not isinstance(parts, (list, tuple)) or not isinstance(along, int) or along % rank == axis:
        return None
    same_rank = all(len(sizes_as_text(part)) == rank for part in parts)
    return _all(node, axis, tuple(parts)) if same_rank else None


def _turned(node: fx.Node, axis: int) -> Carried | None:
    """Vectors in another order, or some of them."""
    named = node.args[1] if node.target is _SELECTED else node.args[2] if len(node.args) > 2 else None
    axes = [named] if isinstance(named, int) else list(named) if isinstance(named, (list, tuple)) else []
    rank = len(sizes_as_text(node))
    # A roll without axes is of the flattened tensor.
    if not axes or axis in {int(a) % rank for a in axes}:
        return None
    return _all(node, axis, node.args[:1])


def _totalled(node: fx.Node, axis: int) -> Carried | None:
    """A sum or mean over other axes, such as tokens or pixels: each feature for itself."""
    source, axes = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(source, fx.Node) or not isinstance(axes, (list, tuple)) or not axes or "dtype" in node.kwargs:
        return None
    rank = len(sizes_as_text(source))
    gone = {int(a) % rank for a in axes if isinstance(a, int)}
    keeps = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    left = list(range(rank)) if keeps else [a for a in range(rank) if a not in gone]
    at = left[axis]
    return ((source, at),) if at not in gone and recorded_tensor(source) is not None else None


def _moved(node: fx.Node, axis: int) -> Carried | None:
    """A move keeps all features of a vector together."""
    source = node.args[0] if node.args else None
    size = static_size(node, axis)
    if not isinstance(source, fx.Node) or size is None or recorded_tensor(source) is None or node.target in _SPLITS:
        return None
    wanted = FeatureAxis(axis, 0, size)
    for candidate in _axes_of_size(source, size):
        if follow(node, source, FeatureAxis(candidate, 0, size)) == wanted:
            return ((source, candidate),)
    return None


def _axes_of_size(node: fx.Node, size: int) -> Iterator[int]:
    return (axis for axis in range(len(sizes_as_text(node))) if static_size(node, axis) == size)
