"""What a chain of layers does to its input, as one layer: weights multiplied, added and scaled in float64."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.linear_sums import ADDITIONS, CONTRACTIONS, CONVOLUTIONS, LinearSum, bias_of
from flowopt.analysis.sliding import Sliding, sliding_of

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class AffineMap:
    """``x -> weight x + bias`` over the features of ``x``.

    Attributes:
        weight: (out, in), or (out, in / groups, *kernel) of a convolution; () or (features,) where each feature is
            scaled by itself. float64.
        bias: () or (out,), or None.
        sliding: how a convolution moves over its input; None for other maps.
    """

    weight: Tensor
    bias: Tensor | None = None
    sliding: Sliding | None = None

    @property
    def is_diagonal(self) -> bool:
        """True when each feature is scaled by itself."""
        return self.weight.dim() < 2


def affine_map(total: LinearSum, constant: Callable[[fx.Node], Tensor]) -> AffineMap | None:
    """The sum of all terms as one layer of ``total.x``.

    Args:
        total: checked: what scales, shifts and contracts along the way is stored, and features stay on their axis.
        constant: value of a stored tensor, in float64.

    Returns:
        None when the sum is no one layer: convolutions that move differently over their input, or a shift of what a
        convolution pads with zeros.
    """
    maps = {total.x: AffineMap(_number(1))}
    for node in sorted({node for term in total.terms for node in term.region}):
        found = _applied(node, maps, constant)
        if found is None:
            return None
        maps[node] = found
    merged: AffineMap | None = None
    for term in total.terms:
        scaled = _scaled(maps[term.node], _number(term.factor))
        merged = scaled if merged is None else _added(merged, scaled)
        if merged is None:
            return None
    return merged


def _applied(
    node: fx.Node, maps: Mapping[fx.Node, AffineMap], constant: Callable[[fx.Node], Tensor]
) -> AffineMap | None:
    args: tuple[Any, ...] = node.args
    if node.target in ADDITIONS:
        alpha: Any = node.kwargs.get("alpha", 1)
        sign = 1 if node.target is _aten.add.Tensor else -1
        second = maps[args[1]] if args[1] in maps else AffineMap(_vector(args[1], constant))
        second = _scaled(second, _number(sign * alpha))
        if args[0] not in maps:
            return _shifted(second, _vector(args[0], constant))
        return _added(maps[args[0]], second) if args[1] in maps else _shifted(maps[args[0]], second.weight)
    if node.target is _aten.mul.Tensor:
        value, factor = args[:2] if args[0] in maps else reversed(args[:2])
        return _scaled(maps[value], _vector(factor, constant))
    if node.target is _aten.div.Tensor:
        return _scaled(maps[args[0]], 1 / _vector(args[1], constant))
    if node.target is _aten.neg.default:
        return _scaled(maps[args[0]], _number(-1))
    if node.target is _aten.embedding.default:
        # A table is the layer of a one-hot vector: entry i of the input picks column i of the weight.
        return AffineMap(constant(args[0]).t())
    if node.target in CONTRACTIONS:
        bias = bias_of(node)
        stored = None if bias is None else constant(bias)
        sliding = sliding_of(node) if node.target in CONVOLUTIONS else None
        return _contracted(maps[args[0]], AffineMap(constant(args[1]), stored, sliding))
    return maps[args[0]]


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _vector(value: Any, constant: Callable[[fx.Node], Tensor]) -> Tensor:
    """A number or a stored tensor as () or (features,)."""
    found = constant(value) if isinstance(value, fx.Node) else _number(value)
    return found.reshape(()) if found.numel() == 1 else found.flatten()


def _scaled(one: AffineMap, factor: Tensor) -> AffineMap:
    over_weight = factor if one.is_diagonal or factor.dim() == 0 else factor.reshape(-1, *[1] * (one.weight.dim() - 1))
    return replace(one, weight=one.weight * over_weight, bias=None if one.bias is None else one.bias * factor)


def _shifted(one: AffineMap, shift: Tensor) -> AffineMap:
    return replace(one, bias=shift if one.bias is None else one.bias + shift)


def _added(one: AffineMap, other: AffineMap) -> AffineMap | None:
    if one.is_diagonal and not other.is_diagonal:
        one, other = other, one
    if one.sliding != other.sliding:
        return None
    weight = other.weight
    if other.is_diagonal and not one.is_diagonal:
        weight = torch.diag(weight.expand(one.weight.shape[0]))
    elif not other.is_diagonal and one.weight.shape != weight.shape:
        return None
    summed = replace(one, weight=one.weight + weight)
    return summed if other.bias is None else _shifted(summed, other.bias)


def _contracted(inner: AffineMap, outer: AffineMap) -> AffineMap | None:
    """``outer`` after ``inner``."""
    if inner.bias is not None:
        carried = _carried(inner.bias, outer)
        if carried is None:
            return None
        outer = _shifted(outer, carried)
    if inner.is_diagonal:
        if inner.weight.dim() and outer.sliding is not None and outer.sliding.groups != 1:
            return None
        columns = inner.weight.reshape(-1, *[1] * (outer.weight.dim() - 2)) if inner.weight.dim() else inner.weight
        return replace(outer, weight=outer.weight * columns)
    if outer.sliding is None:
        return replace(outer, weight=outer.weight @ inner.weight) if inner.sliding is None else None
    if inner.sliding is None or not inner.sliding.groups == outer.sliding.groups == 1:
        return None
    if outer.sliding.is_pointwise(outer.weight):
        product = torch.einsum("or,ri...->oi...", outer.weight.flatten(1), inner.weight)
        return replace(outer, weight=product, sliding=inner.sliding)
    if inner.sliding.is_pointwise(inner.weight):
        first = inner.weight.flatten(1)
        return replace(outer, weight=torch.einsum("or...,ri->oi...", outer.weight, first), sliding=outer.sliding)
    return None


def _carried(shift: Tensor, outer: AffineMap) -> Tensor | None:
    """What ``outer`` makes of a shift of its input; None where it pads with zeros, which nothing shifts."""
    if outer.sliding is not None and (outer.sliding.groups != 1 or outer.sliding.pads):
        return None
    over_kernel = outer.weight.flatten(2).sum(2) if outer.weight.dim() > 2 else outer.weight
    return over_kernel @ shift.expand(over_kernel.shape[1])
