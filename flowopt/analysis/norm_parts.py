"""What one norm is made of: the operator, what it reads, and the gain and shift behind it."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.norm_affine import LIBRARY_NORMS, affine_after, library_norm_affine, shift_after
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten
_LAYER, _RMS, _GROUP, _INSTANCE = (
    _aten.layer_norm.default,
    _aten.rms_norm.default,
    _aten.group_norm.default,
    _aten.instance_norm.default,
)
EVAL_BATCH_NORM = _aten._native_batch_norm_legit_no_training.default
NORM_OPERATORS = (_LAYER, _RMS, _GROUP, _INSTANCE, EVAL_BATCH_NORM)


class NormKind(StrEnum):
    """What a norm computes its statistics of.

    Attributes:
        LAYER: mean and variance of each vector of channels.
        RMS: mean square of each vector of channels.
        GROUP: mean and variance of each group of channels of one sample, over all its places; of an instance norm
            every channel is a group.
        BATCH: none: an eval-mode batch norm has stored ones.
    """

    LAYER = "layer"
    RMS = "rms"
    GROUP = "group"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class NormParts:
    """``output = gain * normalised(source) + shift`` in each channel, with stored gain and shift.

    Attributes:
        kind: of the norm.
        norm: the operator.
        source: what is normalised.
        output: the value that readers see, behind gain and shift that are written out.
        axis: of the channels, in ``source`` and in ``output``.
        channels: how many.
        groups: of channels, with statistics of their own; 1 unless ``kind`` is GROUP.
        eps: what is added to a variance or mean square.
        affine: pairs of gain and shift (parameter-only nodes or None), the operator's own first.
        statistics: running mean and variance of a batch norm, else None.
    """

    kind: NormKind
    norm: fx.Node
    source: fx.Node
    output: fx.Node
    axis: int
    channels: int
    groups: int
    eps: float
    affine: tuple[tuple[fx.Node | None, fx.Node | None], ...]
    statistics: tuple[fx.Node, fx.Node] | None = None


def norm_parts(norm: fx.Node) -> NormParts | None:
    """The parts of a norm.

    Returns:
        None where the operator is no norm of ``NORM_OPERATORS``, normalises over several axes or a stored tensor, has
        a free number of channels, takes a gain, a shift or statistics that are computed at run time, or has no
        recorded shape.
    """
    if norm.op != "call_function" or norm.target not in NORM_OPERATORS:
        return None
    source = norm.args[0]
    value = recorded_tensor(source)
    if not isinstance(source, fx.Node) or source.op == "get_attr" or value is None or value.dim() == 0:
        return None
    if norm.target is EVAL_BATCH_NORM:
        return _batch_parts(norm, source)
    axis = value.dim() - 1 if norm.target in LIBRARY_NORMS else 1
    channels = static_size(source, axis)
    if channels is None or not _is_over_channels(norm):
        return None
    return _live_parts(norm, source, axis, channels)


def gain_and_shift(parts: NormParts, constant: Callable[[fx.Node], Tensor]) -> tuple[Tensor, Tensor]:
    """Gain and shift of the whole, (channels,) each; 1 and 0 where there are none.

    Args:
        parts: of the norm.
        constant: the value of a parameter-only node, in float64.
    """
    gain = torch.ones(parts.channels, dtype=torch.float64)
    shift = torch.zeros(parts.channels, dtype=torch.float64)
    for factor, addend in parts.affine:
        if factor is not None:
            scale = constant(factor).flatten()
            gain, shift = gain.to(scale.device) * scale, shift.to(scale.device) * scale
        if addend is not None:
            shift = shift + constant(addend).flatten()
    return gain, shift


def batch_affine(parts: NormParts, constant: Callable[[fx.Node], Tensor]) -> tuple[Tensor, Tensor]:
    """The scale and the shift that an eval-mode batch norm is, (channels,) each; arguments as above."""
    assert parts.statistics is not None
    mean, variance = (constant(node).flatten() for node in parts.statistics)
    gain, shift = gain_and_shift(parts, constant)
    scale = gain.to(mean.device) * torch.rsqrt(variance + parts.eps)
    return scale, shift.to(mean.device) - scale * mean


def _live_parts(norm: fx.Node, source: fx.Node, axis: int, channels: int) -> NormParts | None:
    own = library_norm_affine(norm)
    affine: tuple[tuple[fx.Node | None, fx.Node | None], ...] = ((own.gain, own.shift),)
    written = (affine_after(norm) or shift_after(norm)) if norm.target in LIBRARY_NORMS else None
    if written is not None:
        affine = (*affine, (written.gain, written.shift))
    if not all(vector is None or is_parameter_only(vector) for pair in affine for vector in pair):
        return None
    output = norm if written is None else written.output
    groups: Any = norm.args[1] if norm.target is _GROUP else channels if norm.target is _INSTANCE else 1
    return NormParts(_kind(norm), norm, source, output, axis, channels, groups, _epsilon(norm, source), affine)


def _kind(norm: fx.Node) -> NormKind:
    if norm.target in LIBRARY_NORMS:
        return NormKind.LAYER if norm.target is _LAYER else NormKind.RMS
    return NormKind.GROUP


def _batch_parts(norm: fx.Node, source: fx.Node) -> NormParts | None:
    _, gain, shift, mean, variance, _, eps = norm.args
    readers = [u for u in norm.users if u.target is operator.getitem and u.args[1] == 0]
    channels = static_size(source, 1)
    stored = [node for node in (gain, shift, mean, variance) if node is not None]
    known = [node for node in stored if isinstance(node, fx.Node) and is_parameter_only(node)]
    if channels is None or len(readers) != 1 or len(norm.users) != 1 or len(known) != len(stored):
        return None
    assert isinstance(mean, fx.Node) and isinstance(variance, fx.Node) and isinstance(eps, (int, float))
    affine = tuple(node if isinstance(node, fx.Node) else None for node in (gain, shift))
    parts = ((affine[0], affine[1]),)
    return NormParts(NormKind.BATCH, norm, source, readers[0], 1, channels, 1, float(eps), parts, (mean, variance))


def _is_over_channels(norm: fx.Node) -> bool:
    if norm.target in LIBRARY_NORMS:
        shape: Any = norm.args[1]
        return isinstance(shape, (list, tuple)) and len(shape) == 1
    # An instance norm with running statistics in eval mode is a batch norm under another name.
    return norm.target is not _INSTANCE or norm.args[5] is True


def _epsilon(norm: fx.Node, source: fx.Node) -> float:
    at = 3 if norm.target is _RMS else 7 if norm.target is _INSTANCE else 4
    default = None if norm.target is _RMS else 1e-5
    given: Any = norm.args[at] if len(norm.args) > at else norm.kwargs.get("eps", default)
    if given is not None:
        return float(given)
    value = recorded_tensor(source)
    assert value is not None
    # What rms_norm takes where it is told none.
    return torch.finfo(value.dtype).eps
