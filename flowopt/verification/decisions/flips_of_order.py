"""The same for operators that put numbers in order: which is the largest, which come first, between which ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from flowopt.ir.evaluate import Value
from flowopt.verification.decisions.flips import Seen, argument, operand


def best(node: fx.Node, seen: Mapping[str, Seen], result: Any) -> tuple[Value, int]:
    """Argmax, argmin and the indices of max and min along an axis: the runner-up where it is close."""
    source, axis = operand(node, "self", seen), argument(node, "dim")
    values, tolerance = source.oracle, source.tolerance
    if axis is None:
        values, tolerance, axis = values.reshape(-1), tolerance.reshape(-1), 0
    if values.dim() == 0 or values.shape[axis] < 2:
        return result, 0
    indices = result[1] if isinstance(result, tuple) else result
    is_least = "min" in str(node.target)
    two, places = torch.topk(values, 2, dim=axis, largest=not is_least)
    allowed = torch.gather(tolerance, axis, places).sum(axis).reshape(indices.shape)
    first, second = (places.select(axis, i).reshape(indices.shape) for i in (0, 1))
    undecided = (two.select(axis, 0) - two.select(axis, 1)).abs().reshape(indices.shape) < allowed
    # Of two equal ones topk may name either first.
    other = torch.where(undecided, torch.where(indices == second, first, second), indices)
    return ((result[0], other) if isinstance(result, tuple) else other), int(undecided.sum())


def ordered(node: fx.Node, seen: Mapping[str, Seen], result: Any) -> tuple[Value, int]:
    """Sort and topk: neighbours change places where they are close; behind the last kept one stands the next.

    Only a stable sort says which of two equal ones comes first.
    """
    source = operand(node, "self", seen)
    axis = int(argument(node, "dim", -1))
    if source.oracle.dim() == 0 or source.oracle.shape[axis] < 2:
        return result, 0
    indices = result[1] if isinstance(result, tuple) else result
    kept = indices.shape[axis]
    if kept == 0:
        return result, 0
    if kept < source.oracle.shape[axis]:
        beyond = _next(source.oracle, indices, axis, largest=bool(argument(node, "largest", True)))
        indices = torch.cat([indices, beyond], axis)
    places = indices.movedim(axis, -1)
    values, tolerance = (torch.gather(t.movedim(axis, -1), -1, places) for t in (source.oracle, source.tolerance))
    is_close = values.diff(dim=-1).abs() < tolerance[..., 1:] + tolerance[..., :-1]
    if not argument(node, "stable", False):
        is_close |= values[..., 1:] == values[..., :-1]
    close = pad(is_close, (0, 1))
    places = torch.gather(places, -1, _rotated(close))[..., :kept].movedim(-1, axis)
    if not isinstance(result, tuple):
        return places, int(close.sum())
    return (torch.gather(source.oracle, axis, places).to(result[0].dtype), places), int(close.sum())


def bucketed(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """Which boundaries a number lies between: the bucket beside it where a boundary is close."""
    name = "boundaries" if "bucketize" in str(node.target) else "sorted_sequence"
    source, bounds = operand(node, "self", seen), operand(node, name, seen)
    last = bounds.oracle.shape[-1] - 1
    if last < 0 or argument(node, "sorter") is not None:
        return result, 0
    above, below = (_distance(source, bounds, (result.long() - i).clamp(0, last)) for i in (0, 1))
    rises = (result <= last) & above[1] & ((above[0] <= below[0]) | (result == 0))
    falls = (result > 0) & below[1] & ~rises
    other = result + rises.to(result.dtype) - falls.to(result.dtype)
    return other, int((rises | falls).sum())


def pooled(node: fx.Node, seen: Mapping[str, Seen], result: Any) -> tuple[Value, int]:
    """The places of the largest in each window: the runner-up's where it is close."""
    if any(isinstance(a, fx.Node) for a in node.all_input_nodes[1:]):
        return result, 0  # a window whose size is computed
    source, target = operand(node, "self", seen), node.target
    assert callable(target)
    axes = next(d for d in (1, 2, 3) if f"{d}d" in str(target))
    winners = result[1].flatten(-axes)
    rest = source.oracle.flatten(-axes).scatter(-1, winners, -torch.inf).view_as(source.oracle)
    second, places = target(rest, *node.args[1:], **node.kwargs)
    tolerance = source.tolerance.flatten(-axes)
    allowed = tolerance.gather(-1, winners) + tolerance.gather(-1, places.flatten(-axes).clamp(min=0))
    undecided = (result[0] - second).abs() < allowed.view_as(second)
    return tuple(torch.where(undecided, b, a) for a, b in zip(result, (second, places), strict=True)), int(
        undecided.sum()
    )


def _next(values: Tensor, chosen: Tensor, axis: int, *, largest: bool) -> Tensor:
    """Place of the best of those that were not chosen."""
    order = torch.argsort(values, dim=axis, descending=largest, stable=True)
    is_left = torch.ones_like(values, dtype=torch.bool).scatter(axis, chosen, False)
    first = torch.gather(is_left, axis, order).to(torch.int8).argmax(axis, keepdim=True)
    return torch.gather(order, axis, first)


def _rotated(close: Tensor) -> Tensor:
    """Places in which every run of close neighbours is rotated by one; ``close`` says it of each and the next."""
    places = torch.arange(close.shape[-1]).expand(close.shape)
    is_first = ~pad(close[..., :-1], (1, 0))
    first = torch.where(is_first, places, 0).cummax(-1).values
    return torch.where(close, places + 1, first)


def _distance(source: Seen, bounds: Seen, at: Tensor) -> tuple[Tensor, Tensor]:
    """How far a bound is, and whether that is less than the tolerance."""
    bound, tolerance = (t[at] if t.dim() == 1 else torch.gather(t, -1, at) for t in (bounds.oracle, bounds.tolerance))
    distance = (source.oracle - bound).abs()
    return distance, distance < source.tolerance + tolerance
