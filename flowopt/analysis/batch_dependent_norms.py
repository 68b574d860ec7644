"""Batch norms that use the statistics of the batch at hand, wholly or in part, at test time too."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from flowopt.analysis.batch_moments import BatchMoments
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

_aten = torch.ops.aten
_ADD, _SUB, _MUL, _DIV = _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor
_SHAPED = (_aten.reshape.default, _aten.view.default)
WITHOUT_STATISTICS = _aten._native_batch_norm_legit.no_stats
OTHERS_WITHOUT_STATISTICS = (_aten.native_batch_norm.default, _aten.batch_norm.default)
ROOT = _aten.sqrt.default


@dataclass(frozen=True, slots=True)
class BatchDependentNorm:
    """``gain * (x - mean) / sqrt(variance + eps) + shift``, with a mean and a variance that are the batch's in part.

    Attributes:
        source: x.
        output: the value, behind gain and shift.
        axis: of the channels.
        channels: how many.
        eps: what is added to the variance.
        gain: of each channel, parameter-only, or None.
        shift: of each channel, parameter-only, or None.
        target_weight: share of the batch's own mean and variance. The variance is the biased one where the batch's
            share is all, the unbiased one where it is not.
        stored: what is added to that share for the mean and for the variance, parameter-only; None where the batch's
            share is all.
    """

    source: fx.Node
    output: fx.Node
    axis: int
    channels: int
    eps: float
    gain: fx.Node | None
    shift: fx.Node | None
    target_weight: float = 1.0
    stored: tuple[fx.Node, fx.Node] | None = None


def batch_dependent_norm(node: fx.Node, constant: Callable[[fx.Node], Tensor]) -> BatchDependentNorm | None:
    """The norm that a node is the operator of, or the root of the variance of.

    Args:
        node: of a program.
        constant: value of a parameter-only node of it.

    Returns:
        None where the node is no such norm, takes a gain or shift that is computed at run time, has a free number of
        channels, or where saved statistics are read.
    """
    if node.op != "call_function":
        return None
    if node.target is ROOT:
        return _mixed(node, constant)
    is_batch_norm = node.target is WITHOUT_STATISTICS or (
        node.target in OTHERS_WITHOUT_STATISTICS and node.args[3] is None and node.args[4] is None
    )
    return _whole(node) if is_batch_norm else None


def _whole(norm: fx.Node) -> BatchDependentNorm | None:
    source, gain, shift = norm.args[:3]
    eps: Any = norm.args[5] if norm.target is WITHOUT_STATISTICS else norm.args[7]
    channels = static_size(source, 1)
    output = norm if norm.target is _aten.batch_norm.default else _only_result(norm)
    stored = all(vector is None or _is_stored(vector) for vector in (gain, shift))
    if not isinstance(source, fx.Node) or channels is None or output is None or not stored:
        return None
    vectors = [vector if isinstance(vector, fx.Node) else None for vector in (gain, shift)]
    return BatchDependentNorm(source, output, 1, channels, float(eps), vectors[0], vectors[1])


def _mixed(root: fx.Node, constant: Callable[[fx.Node], Tensor]) -> BatchDependentNorm | None:
    """A norm that mixes stored statistics with its batch's, around the root of the mixed variance.

    x less the mixed mean, over the root of the mixed variance plus epsilon; the batch's mean and unbiased variance are
    those of x over all axes but that of the channels.
    """
    variance, eps = _sum_with_number(root.args[0])
    shaped = _only_reader(root)
    quotient = None if shaped is None or shaped.target not in _SHAPED else _only_reader(shaped)
    centred: Any = None if quotient is None or quotient.target is not _DIV else quotient.args[0]
    if variance is None or not _is_call(centred, _SUB) or quotient is None or quotient.args[1] is not shaped:
        return None
    if centred.kwargs.get("alpha", 1) != 1:
        return None
    source, broadcast = centred.args[:2]
    mean = broadcast.args[0] if isinstance(broadcast, fx.Node) and broadcast.target in _SHAPED else None
    axis = _channel_axis(broadcast, source)
    parts = [_mixture(value) for value in (mean, variance)]
    if axis is None or parts[0] is None or parts[1] is None or parts[0][2] != parts[1][2]:
        return None
    assert isinstance(source, fx.Node)
    (stored_mean, batch_mean, weight), (stored_variance, batch_variance, _) = parts[0], parts[1]
    moments = BatchMoments(source, axis, constant)
    if not (moments.is_mean(batch_mean) and moments.is_variance(batch_variance)):
        return None
    channels = static_size(source, axis)
    assert channels is not None
    gain, scaled = _vector_after(quotient, _MUL, axis, channels)
    shift, output = _vector_after(scaled, _ADD, axis, channels)
    stored = (stored_mean, stored_variance)
    return BatchDependentNorm(source, output, axis, channels, eps, gain, shift, weight, stored)


def _sum_with_number(node: Any) -> tuple[fx.Node | None, float]:
    if not _is_call(node, _ADD) or not isinstance(node.args[0], fx.Node) or node.kwargs.get("alpha", 1) != 1:
        return None, 0.0
    number = node.args[1]
    return (node.args[0], float(number)) if isinstance(number, (int, float)) else (None, 0.0)


def _mixture(node: Any) -> tuple[fx.Node, fx.Node, float] | None:
    """What is stored, what is the batch's, and the latter's share."""
    if not _is_call(node, _ADD) or node.kwargs.get("alpha", 1) != 1:
        return None
    for stored, share in (node.args[:2], node.args[1::-1]):
        batch, weight = share.args[:2] if _is_call(share, _MUL) else (None, None)
        if _is_stored(stored) and isinstance(batch, fx.Node) and isinstance(weight, (int, float)):
            return stored, batch, float(weight)
    return None


def _channel_axis(broadcast: Any, source: Any) -> int | None:
    sizes, wanted = sizes_as_text(broadcast), sizes_as_text(source)
    if len(sizes) != len(wanted):
        return None
    long = [axis for axis, size in enumerate(sizes) if size != "1"]
    return long[0] if len(long) == 1 and sizes[long[0]] == wanted[long[0]] and sizes[long[0]].isdigit() else None


def _vector_after(value: fx.Node, target: Any, axis: int, channels: int) -> tuple[fx.Node | None, fx.Node]:
    """A stored vector of channels that the only reader of a value multiplies or adds, and what comes of it."""
    reader = _only_reader(value)
    if reader is None or not _is_call(reader, target) or reader.kwargs.get("alpha", 1) != 1:
        return None, value
    other = reader.args[1] if reader.args[0] is value else reader.args[0]
    vector, before = recorded_tensor(other), recorded_tensor(value)
    if not _is_stored(other) or vector is None or before is None:
        return None, value
    at = axis - before.dim() + vector.dim()
    fits = at >= 0 and vector.numel() == channels == vector.shape[at] and vector.dim() <= before.dim()
    return (other, reader) if fits else (None, value)


def _only_result(norm: fx.Node) -> fx.Node | None:
    reader = _only_reader(norm)
    is_value = reader is not None and reader.target is operator.getitem and reader.args[1] == 0
    return reader if is_value else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_call(node: Any, target: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.target is target


def _is_stored(node: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and is_parameter_only(node)
