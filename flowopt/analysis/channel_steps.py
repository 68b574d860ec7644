"""Frozen per-channel maps: a value times a stored vector, plus or minus one, or through a batch norm in eval mode."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

_aten = torch.ops.aten
_PRODUCTS = (_aten.mul.Tensor, _aten.div.Tensor)
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_BATCH_NORM = _aten._native_batch_norm_legit_no_training.default
# Of a batch norm, axis 1 has the channels.
_BATCH_NORM_AXIS = 1


@dataclass(frozen=True, slots=True)
class ChannelStep:
    """``value = scale * source + shift``, each a number for every channel; one of the two may be missing.

    Attributes:
        value: what is computed.
        source: what it is computed from.
        node: the operator: ``value``, or the batch norm of which that is the first output.
        axis: of the channels, in both.
    """

    value: fx.Node
    source: fx.Node
    node: fx.Node
    axis: int

    @property
    def scales(self) -> bool:
        """Whether channels may be multiplied by other numbers than one."""
        if self.node.target not in _SUMS:
            return True
        # alpha, and the sign of a difference, belong to the second operand.
        return self.node.args[1] is self.source and (self.node.target, self.node.kwargs.get("alpha", 1)) != (
            _SUMS[0],
            1,
        )


def channel_step(value: fx.Node, axis: int | None = None) -> ChannelStep | None:
    """The step that computes ``value``.

    Args:
        value: any node.
        axis: of the channels, counted from 0; None: the one along which the stored vector lies.

    Returns:
        None where the operator is another one, where it changes shape or dtype, or has a vector along another axis.
    """
    if value.op != "call_function":
        return None
    if value.target is operator.getitem:
        return _normed(value, axis)
    if value.target not in (*_PRODUCTS, *_SUMS) or len(value.args) != 2:
        return None
    first, second = value.args
    ways = [(first, second)] if value.target is _aten.div.Tensor else [(first, second), (second, first)]
    for source, vector in ways:
        if not isinstance(source, fx.Node) or not _is_alike(source, value) or is_parameter_only(source):
            continue
        along = _axis_of(vector, value, axis)
        if along is not None:
            return ChannelStep(value, source, value, along)
    return None


def scale_and_shift(
    step: ChannelStep, constant: Callable[[fx.Node], Tensor], channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift of a step, each (channels,) in float64, None where there is none.

    Args:
        step: a step.
        constant: value of a parameter-only node, in float64.
        channels: their number.
    """
    node = step.node
    if node.target is _BATCH_NORM:
        return _of_batch_norm(node, constant)
    (other,) = (argument for argument in node.args if argument is not step.source)
    if isinstance(other, fx.Node):
        vector = constant(other).double().flatten().expand(channels)
    else:
        vector = torch.full((channels,), float(other), dtype=torch.float64)  # type: ignore[arg-type]  # a number
    if node.target is _aten.mul.Tensor:
        return vector, None
    if node.target is _aten.div.Tensor:
        return vector.reciprocal(), None
    alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]  # a number
    if node.target is _aten.add.Tensor:
        # alpha belongs to the second operand.
        return (None, alpha * vector) if node.args[1] is other else (torch.full_like(vector, alpha), vector)
    return (None, -alpha * vector) if node.args[1] is other else (torch.full_like(vector, -alpha), vector)


def composed(
    steps: Sequence[ChannelStep], constant: Callable[[fx.Node], Tensor], channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift of steps one after the other; arguments and result as for one step."""
    scale: Tensor | None = None
    shift: Tensor | None = None
    for step in steps:
        factor, added = scale_and_shift(step, constant, channels)
        if factor is not None:
            scale = factor if scale is None else scale * factor
            shift = None if shift is None else shift * factor
        if added is not None:
            shift = added if shift is None else shift + added
    return scale, shift


def frozen_norm(node: fx.Node) -> tuple[ChannelStep, ...]:
    """The steps of a frozen norm: a batch norm in eval mode, or a product and at once a sum along the same axis.

    Args:
        node: the batch norm or the product.

    Returns:
        No steps where it is none.
    """
    if len(node.users) != 1:
        return ()
    (user,) = node.users
    first = channel_step(user if node.target is _BATCH_NORM else node)
    if first is None or first.node is not node or not first.scales:
        return ()
    if node.target is _BATCH_NORM:
        return (first,)
    then = channel_step(user) if user.target in _SUMS else None
    is_next = then is not None and then.source is node and then.axis == first.axis
    return (first, then) if then is not None and is_next else ()


def _of_batch_norm(norm: fx.Node, constant: Callable[[fx.Node], Tensor]) -> tuple[Tensor, Tensor]:
    gain, shift, mean, variance, _, eps = norm.args[1:7]
    assert isinstance(mean, fx.Node) and isinstance(variance, fx.Node)  # a step has stored statistics
    scale = torch.rsqrt(constant(variance).double() + float(eps))  # type: ignore[arg-type]  # a number
    scale = scale * constant(gain).double() if isinstance(gain, fx.Node) else scale
    moved = -scale * constant(mean).double()
    return scale, moved + constant(shift).double() if isinstance(shift, fx.Node) else moved


def _normed(value: fx.Node, axis: int | None) -> ChannelStep | None:
    norm, index = value.args
    if not isinstance(norm, fx.Node) or norm.target is not _BATCH_NORM or index != 0 or len(norm.args) < 7:
        return None
    source, stored = norm.args[0], [a for a in norm.args[1:5] if isinstance(a, fx.Node)]
    if axis not in (None, _BATCH_NORM_AXIS) or not isinstance(source, fx.Node) or len(norm.users) != 1:
        return None
    has_statistics = isinstance(norm.args[3], fx.Node) and isinstance(norm.args[4], fx.Node)
    is_known = static_size(source, _BATCH_NORM_AXIS) is not None and _is_alike(source, value)
    if not has_statistics or not is_known or not all(map(is_parameter_only, stored)) or is_parameter_only(source):
        return None
    return ChannelStep(value, source, norm, _BATCH_NORM_AXIS)


def _is_alike(source: fx.Node, value: fx.Node) -> bool:
    before, after = recorded_tensor(source), recorded_tensor(value)
    if before is None or after is None or before.dtype != after.dtype or not before.is_floating_point():
        return False
    return sizes_as_text(source) == sizes_as_text(value)


def _axis_of(vector: Any, value: fx.Node, axis: int | None) -> int | None:
    """The axis along which a constant differs from channel to channel; one number may be along any axis of a sum."""
    if value.target in _SUMS and axis is not None:
        is_number = isinstance(vector, (int, float)) and not isinstance(vector, bool)
        if is_number or (_is_stored(vector) and recorded_tensor(vector).numel() == 1):  # type: ignore[union-attr]
            return axis
    if not _is_stored(vector):
        return None
    recorded, result = recorded_tensor(vector), recorded_tensor(value)
    assert recorded is not None and result is not None
    found = [at for at in range(recorded.dim()) if recorded.shape[at] != 1]
    if len(found) != 1 or recorded.dim() > result.dim():
        return None
    along = result.dim() - recorded.dim() + found[0]
    # Comparing a free size would fix it.
    is_whole = static_size(value, along) == recorded.shape[found[0]]
    return along if is_whole and axis in (None, along) else None


def _is_stored(vector: Any) -> bool:
    return isinstance(vector, fx.Node) and recorded_tensor(vector) is not None and is_parameter_only(vector)
