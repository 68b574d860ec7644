"""Fold the gain and shift of a layer norm or RMS norm into every linear layer that reads it.

    linear(gain * z + shift, W, b)  =  linear(z, W diag(gain), b + W shift)

z is the normalised value. The norm keeps its epsilon and loses its affine part, be it the operator's own or, where that
has none, a product and a sum written after it.

Numerical effect: EXACT. W' is computed in float64 and rounded once, so each weight carries at most one more unit
roundoff, the size of the rounding that multiplying by the gain did before.

Refuses when:
    no-affine           the norm has neither gain nor shift
    not-a-norm          an rsqrt that belongs to no hand-written norm with a gain
    axis-mismatch       the norm covers more than the last axis, or a reader contracts another axis than the norm's
    post-norm           the output is added into the residual stream (post-norm blocks such as BERT's)
    not-linear-reader   any other reader, or none but of its size
    graph-output        the output is an output of the model
    not-constant        the gain, the shift, a weight or a bias is computed at run time, or state
    dynamic-shape       the number of features is free
    not-finite          a folded weight would overflow its dtype
    missing-metadata    a node without recorded shape

A weight that is read elsewhere too (a tied head) is not touched: this call gets its own copy, and the report says
how many bytes that adds.

Attributes of the matched operators:
    layer_norm: input, weight, bias, eps used; normalized_shape checked to be one axis; cudnn_enable irrelevant: it
    picks a kernel. rms_norm: input, weight, eps used; normalized_shape checked.
    mul and add after a library norm that has neither: as those around rsqrt.
    rsqrt and the operators around it: the gain is checked to be a stored vector over the last axis and the only
    reader of the normalised value; what is normalised, and how, is irrelevant: g * z is linear in g for any z.
    linear: input, weight, bias used; the input's features are checked to be those of the norm.
    Between them: the moving operators of ``flowopt.analysis.axes``, each checked to keep the features together.

Source: Graef et al., "FlashNorm: fast normalization for LLMs", section 2; Ashkboos et al., "SliceGPT", section 3.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.axes import FeatureAxis, feature_axis
from flowopt.analysis.norm_affine import (
    LIBRARY_NORMS,
    NormAffine,
    affine_after,
    library_norm_affine,
    written_norm_affine,
)
from flowopt.analysis.readers import Reader, readers
from flowopt.ir.metadata import module_path
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, _aten.sub.Tensor)
_SIZE_READERS = (_aten.sym_size.int,)


@dataclass(frozen=True, slots=True)
class Plan:
    """Fold one norm's affine part into ``readers``; ``sizes`` read only its shape."""

    affine: NormAffine
    readers: tuple[Reader, ...]
    sizes: tuple[Reader, ...]


class FoldNormAffine(RewritePass[Plan]):
    """Fold the gain and shift of a LayerNorm or RMSNorm into every linear layer that reads it."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (*LIBRARY_NORMS, _aten.rsqrt.default)

    def check(self, site: Site) -> Plan:
        affine = _affine(site)
        at = _features(site, affine)
        gain, shift = _vectors(site, affine)
        found = tuple(readers(affine.output, at))
        sizes = tuple(r for r in found if r.node.target in _SIZE_READERS)
        linears = tuple(r for r in found if r not in sizes)
        site.require(bool(linears), "not-linear-reader", "nothing reads the norm's output but its size")
        for reader in linears:
            _require_linear(site, reader)
        for reader in linears:
            _require_finite(site, reader, gain, shift)
        return Plan(affine, linears, sizes)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        affine = plan.affine
        gain = None if affine.gain is None else edit.constant(affine.gain).flatten()
        shift = None if affine.shift is None else edit.constant(affine.shift).flatten()
        moved = {affine.output: _bare_norm(edit, affine)}
        for reader in (*plan.readers, *plan.sizes):
            for node in reader.path:
                if node not in moved:
                    with edit.before(node):
                        moved[node] = edit.repeat(node, moved)
        for reader in plan.sizes:
            with edit.before(reader.node):
                edit.replace(reader.node, edit.repeat(reader.node, moved))
        for node in dict.fromkeys(r.node for r in plan.readers):
            _fold(edit, next(r for r in plan.readers if r.node is node), gain, shift, moved)
        return f"folded into {len(plan.readers)} linear layer{'s' if len(plan.readers) != 1 else ''}"


def _affine(site: Site) -> NormAffine:
    if site.node.target not in LIBRARY_NORMS:
        written = written_norm_affine(site.node)
        if written is None:
            site.refuse("not-a-norm", "no stored gain multiplies the value that this rsqrt scales")
        return written
    shape = site.node.args[1]
    axes = len(shape) if isinstance(shape, (list, tuple)) else 0
    site.require(axes == 1, "axis-mismatch", f"the norm covers {axes} axes, a linear layer contracts one")
    affine = library_norm_affine(site.node)
    if affine.gain is None and affine.shift is None:
        after = affine_after(site.node)
        if after is None:
            site.refuse("no-affine", "the norm has no gain and no shift")
        return after
    return affine


def _features(site: Site, affine: NormAffine) -> FeatureAxis:
    site.recorded(affine.output)
    at = feature_axis(affine.output, -1)
    if at is None:
        site.refuse("dynamic-shape", "the number of features is not known at capture", affine.output)
    return at


def _vectors(site: Site, affine: NormAffine) -> tuple[Tensor | None, Tensor | None]:
    gain = None if affine.gain is None else site.constant(affine.gain, "the gain").flatten()
    shift = None if affine.shift is None else site.constant(affine.shift, "the shift").flatten()
    return gain, shift


def _require_linear(site: Site, reader: Reader) -> None:
    node = reader.node
    site.require(node.op != "output", "graph-output", "the norm's output is an output of the model", node)
    where = f"{node.name} ({node.target}{f' in {module_path(node)}' if module_path(node) else ''})"
    if node.target in _ADDITIONS:
        site.refuse("post-norm", f"{where} adds the norm's output into the residual stream", node)
    site.require(node.target is _aten.linear.default, "not-linear-reader", f"{where} is no linear layer", node)
    only_input = node.args[0] is reader.source and node.all_input_nodes.count(reader.source) == 1
    site.require(
        only_input and reader.source not in node.args[1:],
        "not-linear-reader",
        f"{where} reads it as its weight",
        node,
    )
    last = site.recorded(reader.source).dim() - 1
    site.require(
        reader.at.axis == last,
        "axis-mismatch",
        f"{where} contracts axis {last}, but the features are on axis {reader.at.axis}",
        node,
    )
    width = site.recorded(reader.source).shape[last]
    site.require(
        width == reader.at.stop - reader.at.start,
        "axis-mismatch",
        f"{where} contracts {width} values, but the norm has {reader.at.stop - reader.at.start} features there",
        node,
    )


def _require_finite(site: Site, reader: Reader, gain: Tensor | None, shift: Tensor | None) -> None:
    weight = site.constant(reader.node.args[1], f"the weight of {reader.node.name}")
    bias = _bias_node(reader.node)
    stored_bias = None if bias is None else site.constant(bias, f"the bias of {reader.node.name}")
    folded = _folded(weight, stored_bias, reader, gain, shift)
    limit = torch.finfo(site.recorded(reader.node).dtype).max
    fits = all(t is None or bool((t.abs() <= limit).all()) for t in folded)
    site.require(fits, "not-finite", f"the folded weight of {reader.node.name} would exceed {limit:.3g}", reader.node)


def _bare_norm(edit: Edit, affine: NormAffine) -> fx.Node:
    if affine.bare is not None:
        return affine.bare
    norm = affine.output
    with edit.before(norm):
        if norm.target is _aten.layer_norm.default:
            return edit.call(norm.target, norm.args[0], norm.args[1], None, None, *norm.args[4:], **norm.kwargs)
        return edit.call(norm.target, norm.args[0], norm.args[1], None, *norm.args[3:], **norm.kwargs)


def _fold(edit: Edit, reader: Reader, gain: Tensor | None, shift: Tensor | None, moved: dict[fx.Node, fx.Node]) -> None:
    node = reader.node
    weight_node = node.args[1]
    assert isinstance(weight_node, fx.Node)
    bias_node = _bias_node(node)
    bias = None if bias_node is None else edit.constant(bias_node)
    new_weight, new_bias = _folded(edit.constant(weight_node), bias, reader, gain, shift)
    name = str(weight_node.target) if weight_node.op == "get_attr" else f"{node.name}.weight"
    bias_name = f"{name.removesuffix('.weight')}.bias"
    if bias_node is not None and bias_node.op == "get_attr":
        bias_name = str(bias_node.target)
    with edit.before(node):
        weight = edit.parameter(name, new_weight, like=weight_node)
        stored_bias = bias_node
        if new_bias is not None and shift is not None:
            stored_bias = edit.parameter(bias_name, new_bias, like=bias_node or weight_node)
        new = edit.call(_aten.linear.default, moved[reader.source], weight, stored_bias)
        edit.replace(node, new)


def _folded(
    weight: Tensor, bias: Tensor | None, reader: Reader, gain: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    part = slice(reader.at.start, reader.at.stop)
    added = None if shift is None else weight @ shift[part]
    new_bias = bias if added is None else added if bias is None else bias + added
    return (weight if gain is None else weight * gain[part]), new_bias


def _bias_node(linear: fx.Node) -> fx.Node | None:
    bias = linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None
