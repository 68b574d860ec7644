"""Fold the gain and shift of a norm into every linear layer or convolution that reads it.

    linear(gain * z + shift, W, b)  =  linear(z, W diag(gain), b + W shift)

z is the normalised value; a convolution contracts channels as a linear layer does features, at every tap. The norm
keeps its epsilon and loses its affine part, be it the operator's own or, where that has none, a product and a sum
written after it.

Numerical effect: EXACT. W' is computed in float64 and rounded once, so each weight carries at most one more unit
roundoff, the size of the rounding that multiplying by the gain did before.

Refuses when:
    no-affine           the norm has neither gain nor shift
    not-a-norm          an rsqrt that belongs to no hand-written norm with a gain
    axis-mismatch       a reader contracts other axes than those that gain and shift differ over
    post-norm           the output is added into the residual stream (post-norm blocks such as BERT's)
    not-linear-reader   any other reader, or none but of its size
    padded-reader       a convolution pads with zeros, to which no shift was added
    graph-output        the output is an output of the model
    not-constant        the gain, the shift, a weight or a bias is computed at run time, or state
    dynamic-shape       the number of features is free
    not-finite          a folded weight would overflow its dtype
    missing-metadata    a node without recorded shape

A weight that is read elsewhere too (a tied head) is not touched: this call gets its own copy, and the report says
how many bytes that adds.

Attributes of the matched operators:
    layer_norm, rms_norm: input, weight, bias, eps used; normalized_shape used; cudnn_enable irrelevant: it picks a
    kernel. group_norm, instance_norm: input, weight, bias used, along axis 1; what is normalised, and how, irrelevant.
    mul and add after a library norm that has neither: as those around rsqrt.
    rsqrt and the operators around it: the gain is checked to be a stored vector over the last axis and the only
    reader of the normalised value; what is normalised, and how, is irrelevant: g * z is linear in g for any z.
    linear, convolutions: input, weight, bias, groups used; the norm's feature at each input is followed; padding
    checked where there is a shift; stride, dilation irrelevant.
    Between them: the moves of ``flowopt.analysis.feature_layout``.

Source: Graef et al., "FlashNorm: fast normalization for LLMs", section 2; Ashkboos et al., "SliceGPT", section 3.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

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
from flowopt.ir.metadata import static_size
from flowopt.passes.fold._affine_readers import AffineReader, affine_reader, fold, require_finite
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_SIZE_READERS = (_aten.sym_size.int,)


@dataclass(frozen=True, slots=True)
class Plan:
    """Fold one norm's affine part into ``readers``.

    Attributes:
        affine: gain and shift, and what they are of.
        readers: layers.
        between: operators that are repeated, in graph order.
        sizes: readers of its shape alone.
    """

    affine: NormAffine
    readers: tuple[AffineReader, ...]
    between: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


class FoldNormAffine(RewritePass[Plan]):
    """Fold the gain and shift of a norm into every linear layer or convolution that reads it."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (*LIBRARY_NORMS, *CHANNEL_NORMS, _aten.rsqrt.default)

    def check(self, site: Site) -> Plan:
        affine = _affine(site)
        layout = _features(site, affine)
        gain, shift = _vectors(site, affine)
        found = tuple(placed_readers(affine.output, layout))
        sizes = tuple(r.node for r in found if r.node.target in _SIZE_READERS)
        others = [r for r in found if r.node not in sizes]
        site.require(bool(others), "not-linear-reader", "nothing reads the norm's output but its size")
        readers = tuple(affine_reader(site, reader, has_shift=shift is not None) for reader in others)
        for reader in readers:
            require_finite(site, reader, gain, shift)
        between = sorted({node for reader in found for node in reader.path})
        return Plan(affine, readers, tuple(between), sizes)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        affine = plan.affine
        gain = None if affine.gain is None else edit.constant(affine.gain).flatten()
        shift = None if affine.shift is None else edit.constant(affine.shift).flatten()
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
    if site.node.target not in (*LIBRARY_NORMS, *CHANNEL_NORMS):
        written = written_norm_affine(site.node)
        if written is None:
            site.refuse("not-a-norm", "no stored gain multiplies the value that this rsqrt scales")
        return written
    affine = library_norm_affine(site.node)
    if affine.gain is None and affine.shift is None:
        after = affine_after(site.node)
        if after is None:
            site.refuse("no-affine", "the norm has no gain and no shift")
        return after
    return affine


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


def _vectors(site: Site, affine: NormAffine) -> tuple[Tensor | None, Tensor | None]:
    gain = None if affine.gain is None else site.constant(affine.gain, "the gain").flatten()
    shift = None if affine.shift is None else site.constant(affine.shift, "the shift").flatten()
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
