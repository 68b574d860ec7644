"""Fold the gain and shift of a norm, live or frozen, into every linear layer or convolution that reads it.

    linear(gain * z + shift, W, b)  =  linear(z, W diag(gain), b + W shift)

z is the normalised value; a convolution contracts channels as a linear layer does features, at every tap. The norm
keeps its epsilon and loses its affine part, be it the operator's own or, where that has none, a product and a sum
written after it. A frozen norm is all affine part, and is gone: z is what it read. It is a batch norm in eval mode, or
a product with a stored vector and at once a sum with another along the same axis.

Numerical effect: EXACT. W' is computed in float64 and rounded once, so each weight carries at most one more unit
roundoff, the size of the rounding that multiplying by the gain did before. Weights below the smallest normal number of
their dtype lose more digits: refused where no larger weight is in their row, to which they are nothing. What a frozen
norm reads may be large where its scale is small, so there it is refused too where none is in their column. A gain of
zero leaves zeros, which are exact.

Refuses when:
    no-affine           the norm has neither gain nor shift
    not-a-norm          an rsqrt that belongs to no hand-written norm with a gain
    axis-mismatch       a reader contracts other axes than those that gain and shift differ over
    post-norm           the output is added into the residual stream (post-norm blocks such as BERT's)
    not-linear-reader   any other reader, or none but of its size
    padded-reader       a convolution pads with zeros, to which no shift was added (a frozen norm's may be zero)
    graph-output        the output is an output of the model
    not-constant        the gain, the shift, a weight or a bias is computed at run time, or state
    dynamic-shape       the number of features is free
    not-finite          a folded weight would overflow its dtype
    extreme-scale       folded weights would lose digits to underflow
    missing-metadata    a node without recorded shape

A weight that is read elsewhere too (a tied head) is not touched: this call gets its own copy, and the report says
how many bytes that adds.

Attributes of the matched operators:
    layer_norm, rms_norm: input, weight, bias, eps used; normalized_shape used; cudnn_enable irrelevant: it picks a
    kernel. group_norm, instance_norm: input, weight, bias used, along axis 1; what is normalised, and how, irrelevant.
    mul and add after a library norm that has neither: as those around rsqrt.
    _native_batch_norm_legit_no_training: input, weight, bias, running_mean, running_var, eps used; momentum irrelevant:
    it moves statistics in training only. mul, div with add, sub after it: operands, alpha used.
    rsqrt and the operators around it: the gain is checked to be a stored vector over the last axis and the only
    reader of the normalised value; what is normalised, and how, is irrelevant: g * z is linear in g for any z.
    linear, convolutions: input, weight, bias, groups used; the norm's feature at each input is followed; padding
    checked where there is a shift; stride, dilation irrelevant.
    Between them: the moves of ``flowopt.analysis.feature_layout``.

Source: Graef et al., "FlashNorm: fast normalization for LLMs", section 2; Ashkboos et al., "SliceGPT", section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.channel_steps import ChannelStep, composed, frozen_norm
from flowopt.analysis.feature_layout import Layout, placed_readers, runs_of
from flowopt.analysis.norm_affine import (
    CHANNEL_NORMS,
    LIBRARY_NORMS,
    NormAffine,
    affine_after,
    affine_arguments,
    library_norm_affine,
    written_norm_affine,
)
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import sizes_as_text, static_size
from flowopt.passes.fold._affine_readers import AffineReader, affine_reader, fold, require_range
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_SIZE_READERS = (_aten.sym_size.int,)
_LIVE = (*LIBRARY_NORMS, *CHANNEL_NORMS)
_FROZEN = (_aten.mul.Tensor, _aten.div.Tensor, _aten._native_batch_norm_legit_no_training.default)


@dataclass(frozen=True, slots=True)
class Plan:
    """Fold one norm's affine part into ``readers``.

    Attributes:
        affine: gain and shift, and what they are of.
        steps: of a frozen norm, which gain and shift are computed from.
        has_shift: whether the shift is any but zero.
        readers: layers.
        between: operators that are repeated, in graph order.
        sizes: readers of its shape alone.
    """

    affine: NormAffine
    steps: tuple[ChannelStep, ...]
    has_shift: bool
    readers: tuple[AffineReader, ...]
    between: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


class FoldNormAffine(RewritePass[Plan]):
    """Fold the gain and shift of a norm into every linear layer or convolution that reads it."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (*_LIVE, _aten.rsqrt.default, *_FROZEN)

    def sites(self, program: Program) -> list[fx.Node]:
        """Norms, what may be written ones, and frozen ones; other products are none, nor is a norm's with its gain."""
        found = [node for node in super().sites(program) if not is_parameter_only(node)]
        affines = [_written(node) for node in found if node.target not in _FROZEN]
        gains = {user for one in affines if one is not None and one.bare is not None for user in one.bare.users}
        return [node for node in found if node.target not in _FROZEN or (node not in gains and frozen_norm(node))]

    def check(self, site: Site) -> Plan:
        steps = frozen_norm(site.node) if site.node.target in _FROZEN else ()
        affine = _frozen(steps) if steps else _affine(site)
        layout = _features(site, affine)
        gain, shift = _vectors(affine, steps, site.constant)
        if steps and shift is not None and not bool(shift.any()):
            shift = None
        found = tuple(placed_readers(affine.output, layout))
        sizes = tuple(r.node for r in found if r.node.target in _SIZE_READERS)
        others = [r for r in found if r.node not in sizes]
        site.require(bool(others), "not-linear-reader", "nothing reads the norm's output but its size")
        readers = tuple(affine_reader(site, reader, has_shift=shift is not None) for reader in others)
        for reader in readers:
            require_range(site, reader, gain, shift, is_bounded=not steps)
        between = sorted({node for reader in found for node in reader.path})
        return Plan(affine, steps, shift is not None, readers, tuple(between), sizes)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        affine = plan.affine
        gain, shift = _vectors(affine, plan.steps, lambda node, _: edit.constant(node))
        shift = shift if plan.has_shift else None
        moved = {affine.output: _bare_norm(edit, affine)}
        for node in plan.between:
            with edit.before(node):
                moved[node] = edit.repeat(node, moved)
        for node in plan.sizes:
            with edit.before(node):
                edit.replace(node, edit.repeat(node, moved))
        layers: dict[fx.Node, AffineReader] = {}
        for reader in plan.readers:
            layers.setdefault(reader.node, reader)
        for reader in layers.values():
            fold(edit, reader, moved[reader.source], gain, shift)
        return f"folded into {len(layers)} layer{'s' if len(layers) != 1 else ''}"


def _affine(site: Site) -> NormAffine:
    written = _written(site.node)
    if written is None and site.node.target not in _LIVE:
        site.refuse("not-a-norm", "no stored gain multiplies the value that this rsqrt scales")
    if written is None:
        site.refuse("no-affine", "the norm has no gain and no shift")
    return written


def _written(norm: fx.Node) -> NormAffine | None:
    """Gain and shift of a norm or of one written around an rsqrt; None where it has none."""
    if norm.target not in _LIVE:
        return written_norm_affine(norm)
    affine = library_norm_affine(norm)
    return affine_after(norm) if affine.gain is None and affine.shift is None else affine


def _frozen(steps: tuple[ChannelStep, ...]) -> NormAffine:
    first, last = steps[0], steps[-1]
    axis = first.axis - len(sizes_as_text(last.value))
    return NormAffine(last.value, first.source, None, None, (axis,))


def _features(site: Site, affine: NormAffine) -> Layout:
    """Every place along the axes that gain and shift differ over is a feature, row by row."""
    value = site.recorded(affine.output)
    axes = [runs_of(size, 0) for size in value.shape]
    stride = 1
    for axis in sorted((a % value.dim() for a in affine.axes), reverse=True):
        size = static_size(affine.output, axis)
        if size is None:
            site.refuse("dynamic-shape", "the number of features is not known at capture", affine.output)
        axes[axis] = runs_of(size, stride)
        stride *= size
    return Layout(tuple(axes), 0)


def _vectors(
    affine: NormAffine, steps: tuple[ChannelStep, ...], constant: Callable[[fx.Node, str], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    if steps:
        channels = static_size(affine.output, affine.axes[0])
        assert channels is not None  # a step has a known number of channels
        return composed(steps, lambda node: constant(node, "a stored vector"), channels)
    gain = None if affine.gain is None else constant(affine.gain, "the gain").flatten()
    shift = None if affine.shift is None else constant(affine.shift, "the shift").flatten()
    return gain, shift


def _bare_norm(edit: Edit, affine: NormAffine) -> fx.Node:
    if affine.bare is not None:
        return affine.bare
    norm = affine.output
    at, _ = affine_arguments(norm)
    args = list(norm.args)
    last = at + (1 if norm.target is _aten.rms_norm.default else 2)
    args[at:last] = [None] * len(args[at:last])
    with edit.before(norm):
        return edit.call(norm.target, *args, **norm.kwargs)
