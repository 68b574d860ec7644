"""Recognise the gain and shift of a normalization, library or hand-written."""

from dataclasses import dataclass

import torch
from torch import fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten
_MULTIPLY = (_aten.mul.Tensor,)
_ADD = (_aten.add.Tensor,)
_CASTS = (
    _aten._to_copy.default,
    _aten.to.dtype,
    _aten.type_as.default,
    _aten.clone.default,
    _aten.alias.default,
)
LIBRARY_NORMS = (_aten.layer_norm.default, _aten.rms_norm.default)
# Gain and shift of one number for each channel, along axis 1.
CHANNEL_NORMS = (_aten.group_norm.default, _aten.instance_norm.default)


@dataclass(frozen=True, slots=True)
class NormAffine:
    """A norm's affine part: ``output = gain * bare + shift`` along some axes.

    Attributes:
        output: the value that readers see.
        bare: the normalised value without gain and shift; None for a library norm that computes both at once.
        gain: parameter-only node, or None.
        shift: parameter-only node, or None.
        axes: neighbouring axes over which gain and shift differ; negative ones count from the end.
    """

    output: fx.Node
    bare: fx.Node | None
    gain: fx.Node | None
    shift: fx.Node | None
    axes: tuple[int, ...] = (-1,)


def library_norm_affine(norm: fx.Node) -> NormAffine:
    """Gain and shift of ``layer_norm``, ``rms_norm``, ``group_norm`` and ``instance_norm``."""
    at, axes = affine_arguments(norm)
    args = (*norm.args, None, None, None)
    gain, shift = (a if isinstance(a, fx.Node) else None for a in args[at : at + 2])
    if norm.target is _aten.rms_norm.default:
        shift = None
    return NormAffine(norm, None, gain, shift, axes)


def affine_arguments(norm: fx.Node) -> tuple[int, tuple[int, ...]]:
    """The position of a library norm's gain among its arguments, and the axes that gain and shift differ over."""
    if norm.target is _aten.instance_norm.default:
        return 1, (1,)
    if norm.target is _aten.group_norm.default:
        return 2, (1,)
    shape = norm.args[1]
    count = len(shape) if isinstance(shape, (list, tuple)) else 1
    return 2, tuple(range(-count, 0))


def written_norm_affine(rsqrt: fx.Node) -> NormAffine | None:
    """Gain and shift of a norm written by hand around ``rsqrt``: ``g * cast(x * rsqrt(...)) + b``.

    The gain is a parameter-only factor whose only non-trivial axis is the last one. What is below it does not
    matter for folding it: ``g * z`` is linear in ``g`` for any ``z``.

    Returns:
        None when the value is scaled by no such factor, or is read on the way.
    """
    scaled = _single_reader(rsqrt)
    return affine_after(scaled) if scaled is not None and scaled.target in _MULTIPLY else None


def affine_after(normed: fx.Node) -> NormAffine | None:
    """Gain and shift written by hand after a normalised value: ``g * cast(normed) + b``; None as above."""
    bare = normed
    while (user := _single_reader(bare)) is not None and user.target in _CASTS:
        bare = user
    product = _single_reader(bare)
    if product is None or product.target not in _MULTIPLY:
        return None
    gain = feature_vector(product, bare)
    if gain is None:
        return None
    output, shift = product, None
    addition = _single_reader(product)
    if addition is not None and addition.target in _ADD and addition.kwargs.get("alpha", 1) == 1:
        shift = feature_vector(addition, product)
        output = addition if shift is not None else product
    return NormAffine(output, bare, gain, shift)


def shift_after(normed: fx.Node) -> NormAffine | None:
    """A shift written by hand after a value that has its gain already: ``normed + b``; None as above."""
    addition = _single_reader(normed)
    if addition is None or addition.target not in _ADD or addition.kwargs.get("alpha", 1) != 1:
        return None
    shift = feature_vector(addition, normed)
    return None if shift is None else NormAffine(addition, normed, None, shift)


def feature_vector(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """The other operand, when it is a parameter-only vector over the last axis and changes neither shape nor dtype."""
    others = [a for a in node.args[:2] if a is not value]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or not is_parameter_only(others[0]):
        return None
    vector, before, after = recorded_tensor(others[0]), recorded_tensor(value), recorded_tensor(node)
    if vector is None or before is None or after is None or before.dim() == 0:
        return None
    same = before.dtype == after.dtype and before.dim() == after.dim()
    # The last axis of the value must be known to have that size: comparing a free size would fix it.
    along_last = vector.dim() >= 1 and vector.numel() == vector.shape[-1] == static_size(value, -1)
    return others[0] if same and along_last else None


def _single_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
