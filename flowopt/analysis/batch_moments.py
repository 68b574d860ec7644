"""Whether an expression is the mean or the variance of the batch at hand, in each channel."""

import math
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeGuard, cast, final

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

_aten = torch.ops.aten
_SHAPED = (_aten.reshape.default, _aten.view.default, _aten.unsqueeze.default)
_SUM, _MEAN, _SPLIT = _aten.sum.dim_IntList, _aten.mean.dim, _aten.split_with_sizes.default
# The powers of the number n of values in a channel, and of n - 1, that a sum is multiplied with: by the offset from n.
_Powers = Counter[int]
_OF_MEAN, _OF_VARIANCE = {0: -1}, {-1: -1}


@final
class BatchMoments:
    """Recognises moments of a value over all axes but that of its channels, and nothing that only resembles them.

    A mean is the sum over n, the number of values in each channel; a variance is the unbiased one, the sum of squares
    about that mean over n - 1. Either may be shaped, travel through a concatenation that is split again, or be chosen
    by a condition that always holds: that n is above 0.

    Args:
        source: the value, of recorded shape.
        axis: of its channels, non-negative.
        constant: value of a parameter-only node.
    """

    def __init__(self, source: fx.Node, axis: int, constant: Callable[[fx.Node], Tensor]) -> None:
        self._source = source
        self._axis = axis
        self._constant = constant
        recorded = recorded_tensor(source)
        assert recorded is not None
        self._others = {a for a in range(recorded.dim()) if a != axis}
        self._count = math.prod(recorded.shape[a] for a in self._others)

    def is_mean(self, node: Any) -> bool:
        return self._powers(node, self._source) == _OF_MEAN

    def is_variance(self, node: Any) -> bool:
        return self._powers(node, None) == _OF_VARIANCE

    def _powers(self, node: Any, summed: fx.Node | None) -> _Powers | None:
        """What the sum of ``summed``, or of squares about the mean, is multiplied with; None: it is no such thing."""
        if not isinstance(node, fx.Node):
            return None
        if node.target in (_SUM, _MEAN):
            return self._of_sum(node, summed)
        if node.target in (_aten.div.Tensor, _aten.mul.Tensor):
            is_product = node.target is _aten.mul.Tensor
            for whole, number in (node.args[:2], node.args[1::-1])[: 1 + is_product]:
                powers, offset = self._powers(whole, summed), self._offset(number)
                if powers is not None and offset is not None:
                    powers[offset] += 1 if is_product else -1
                    return _Powers({at: power for at, power in powers.items() if power})
            return None
        if node.target is _aten.where.self and self._holds(node.args[0]):
            return self._powers(node.args[1], summed)
        return self._powers(_unchanged(node), summed)

    def _of_sum(self, node: fx.Node, summed: fx.Node | None) -> _Powers | None:
        value, axes = node.args[0], cast("list[int] | None", node.args[1])
        dtype = node.kwargs.get("dtype")
        if axes is None or {a % (len(self._others) + 1) for a in axes} != self._others:
            return None
        if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
            return None
        if value is not summed if summed is not None else not self._is_square_about_mean(value):
            return None
        return _Powers(_OF_MEAN if node.target is _MEAN else {})

    def _is_square_about_mean(self, value: Any) -> bool:
        away = value.args[0] if _is_call(value, _aten.square.default) else None
        if not _is_call(away, _aten.sub.Tensor) or away.kwargs.get("alpha", 1) != 1:
            return False
        source, mean = away.args[:2]
        return source is self._source and self._lies_along_channels(mean) and self.is_mean(mean)

    def _lies_along_channels(self, vector: Any) -> bool:
        wanted = ["1"] * (len(self._others) + 1)
        wanted[self._axis] = sizes_as_text(self._source)[self._axis]
        sizes = sizes_as_text(vector)
        return ["1"] * (len(wanted) - len(sizes)) + list(sizes) == wanted

    def _offset(self, number: Any) -> int | None:
        """How far a number is from n: 0 or -1; None: it is another one."""
        if isinstance(number, fx.Node) and recorded_tensor(number) is not None:
            return self._offset_of_tensor(number)
        value = number.meta.get("val") if isinstance(number, fx.Node) else number
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(value, (int, torch.SymInt)):
            return None
        away = value - self._count
        # Asked of the expression, a difference is a number or it is not: to compare sizes would leave a guard.
        away = away.node.maybe_as_int() if isinstance(away, torch.SymInt) else away
        return away if away in (0, -1) else None

    def _offset_of_tensor(self, node: fx.Node) -> int | None:
        if is_parameter_only(node):
            value = self._constant(node)
            return self._offset(float(value)) if value.numel() == 1 else None
        if node.target is _aten.full.default:
            return self._offset(node.args[1]) if set(sizes_as_text(node)) <= {"1"} else None
        if node.target is _aten.sub.Tensor and node.args[1] == 1 and node.kwargs.get("alpha", 1) == 1:
            return -1 if self._offset(node.args[0]) == 0 else None
        if node.target is _aten.clamp.default and node.args[1:] == (1,) and not node.kwargs:
            # A batch has at least one value; the variance of one is 0 by any divisor.
            return self._offset(node.args[0])
        inner = _unchanged(node)
        return None if inner is None else self._offset(inner)

    def _holds(self, condition: Any) -> bool:
        """Whether a condition is true of every batch."""
        if isinstance(condition, fx.Node) and is_parameter_only(condition):
            return bool(self._constant(condition).all())
        if not _is_call(condition, _aten.gt.Scalar):
            return False
        return bool(condition.args[1] == 0) and self._offset(condition.args[0]) == 0


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The value whose elements a node has, in their order."""
    if node.target in _SHAPED:
        found = node.args[0]
        return found if isinstance(found, fx.Node) else None
    split = node.args[0] if node.target is operator.getitem else None
    joined = split.args[0] if _is_call(split, _SPLIT) else None
    if not _is_call(split, _SPLIT) or not _is_call(joined, _aten.cat.default) or len(sizes_as_text(joined)) != 1:
        return None
    parts, sizes = cast("list[fx.Node]", joined.args[0]), cast("list[int]", split.args[1])
    return parts[cast(int, node.args[1])] if list(sizes) == [static_size(part, 0) for part in parts] else None


def _is_call(node: Any, target: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.target is target
