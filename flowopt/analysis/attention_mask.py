"""Whether a mask of attention leaves something to attend to in every row."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
_FILLED = {_aten.full.default: 1, _aten.full_like.default: 1, _aten.new_full.default: 2, _aten.scalar_tensor.default: 0}
_ZEROS = {_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default}
_CHOICES = {_aten.where.self, _aten.where.Scalar, _aten.where.ScalarSelf, _aten.where.ScalarOther}
_FILLS = {_aten.masked_fill.Scalar, _aten.masked_fill.Tensor}
_MOVES = {
    _aten.expand.default,
    _aten.unsqueeze.default,
    _aten.slice.Tensor,
    _aten.view.default,
    _aten.reshape.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.clone.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten.lift_fresh_copy.default,
}


def hides_no_row(mask: fx.Node, constant: Callable[[fx.Node], Tensor]) -> bool:
    """True when in every row of ``mask`` something certainly stays visible.

    That is a stored mask whose rows all show something, or an additive one whose values are finite: what it hides in
    all of a row is weighed equally there, and the weights still add up to one. A sum of two such masks may overflow to
    minus infinity, and is not known.

    Args:
        mask: boolean (True is visible) or additive; rows are along the last axis.
        constant: value of a parameter-only node.
    """
    # Rows that are repeated show what they showed, and one place that stands for a whole row shows all of it.
    while mask.target is _aten.expand.default:
        mask = mask.args[0]  # type: ignore[assignment]  # what is expanded is a node
    if is_parameter_only(mask):
        value = constant(mask)
        visible = value if value.dtype is torch.bool else value > -math.inf
        return bool(visible.any(-1).all())
    return _is_finite(mask, constant)


def _is_finite(value: object, constant: Callable[[fx.Node], Tensor]) -> bool:
    found = recorded_tensor(value)
    if not isinstance(value, fx.Node) or found is None or not found.is_floating_point():
        return False
    if is_parameter_only(value):
        return bool((constant(value).abs() <= torch.finfo(found.dtype).max).all())
    args = value.args
    if value.target in _ZEROS:
        return True
    if value.target in _FILLED:
        return _is_representable(args[_FILLED[value.target]], found.dtype)
    if value.target in _CHOICES:
        return all(_is_finite_side(side, found.dtype, constant) for side in args[1:3])
    if value.target in _FILLS:
        return _is_finite_side(args[2], found.dtype, constant) and _is_finite(args[0], constant)
    return value.target in _MOVES and _is_finite(args[0], constant)


def _is_representable(number: object, dtype: torch.dtype) -> bool:
    return isinstance(number, (int, float)) and abs(number) <= torch.finfo(dtype).max


def _is_finite_side(side: object, dtype: torch.dtype, constant: Callable[[fx.Node], Tensor]) -> bool:
    """Of a value that is chosen: a smaller dtype would turn the lowest number of a larger one into minus infinity."""
    found = recorded_tensor(side)
    if found is None:
        return _is_representable(side, dtype)
    return found.dtype == dtype and _is_finite(side, constant)
