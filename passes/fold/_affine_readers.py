"""Layers that take a gain and a shift of their input: linear layers, and convolutions along their channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.analysis.feature_layout import PlacedReader
from flowopt.analysis.sliding import sliding_of
from flowopt.ir.metadata import module_path
from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._folded_inputs import folded_inputs
from flowopt.rewrite import Edit, Site

_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, _aten.sub.Tensor)


@dataclass(frozen=True, slots=True)
class AffineReader:
    """A layer, what it reads, and the norm's feature at each of its inputs."""

    node: fx.Node
    source: fx.Node
    path: tuple[fx.Node, ...]
    features: tuple[int, ...]


def affine_reader(site: Site, reader: PlacedReader, *, has_shift: bool) -> AffineReader:
    """The reader as a layer that the gain and shift fold into; refuses where it is none."""
    node, source = reader.node, reader.source
    site.require(node.op != "output", "graph-output", "the norm's output is an output of the model", node)
    where = f"{node.name} ({node.target}{f' in {module_path(node)}' if module_path(node) else ''})"
    if node.target in _ADDITIONS:
        site.refuse("post-norm", f"{where} adds the norm's output into the residual stream", node)
    is_layer = node.target is layers.LINEAR or node.target in layers.CONVOLUTIONS
    site.require(is_layer, "not-linear-reader", f"{where} is no linear layer", node)
    only_input = node.args[0] is source and node.all_input_nodes.count(source) == 1 and source not in node.args[1:]
    site.require(only_input, "not-linear-reader", f"{where} reads it as its weight", node)
    site.recorded(source)
    axis = layers.feature_axis_of(node, source)
    if axis is None:
        site.refuse("missing-metadata", f"the weight of {where} has no recorded shape", node)
    found = reader.layout.featured_axes()
    on_axes = ", ".join(map(str, found))
    message = f"{where} contracts axis {axis}, but the features are on axis {on_axes}"
    site.require(found in ((axis,), ()), "axis-mismatch", message, node)
    if node.target in layers.CONVOLUTIONS and has_shift:
        message = f"{where} pads with zeros, to which no shift was added"
        site.require(not sliding_of(node).pads, "padded-reader", message, node)
    return AffineReader(node, source, reader.path, reader.layout.features(axis))


def require_range(
    site: Site, reader: AffineReader, gain: Tensor | None, shift: Tensor | None, *, is_bounded: bool
) -> None:
    """Refuse where a folded parameter would leave the range of its dtype, or lose digits at its lower end.

    Args:
        site: of the norm.
        reader: takes gain and shift.
        gain: None where there is none.
        shift: likewise.
        is_bounded: whether the normalised value has one magnitude in all features; a frozen norm's may have any.
    """
    weight_node, bias_node = layers.weight_and_bias(reader.node)
    weight = site.constant(weight_node, f"the weight of {reader.node.name}")
    bias = None if bias_node is None else site.constant(bias_node, f"the bias of {reader.node.name}")
    limits = torch.finfo(site.recorded(reader.node).dtype)
    folded = folded_inputs(reader.node, reader.features, (weight, bias), gain, shift)
    where = f"the folded weight of {reader.node.name} would"
    site.require(not folded.overflows(limits), "not-finite", f"{where} exceed {limits.max:.3g}", reader.node)
    message = f"{where} be below {limits.tiny:.3g} and lose digits"
    site.require(not folded.underflows(limits, is_bounded=is_bounded), "extreme-scale", message, reader.node)


def fold(edit: Edit, reader: AffineReader, source: fx.Node, gain: Tensor | None, shift: Tensor | None) -> None:
    """Replace the layer by one that reads ``source``, the normalised value, as it is."""
    node = reader.node
    weight_node, bias_node = layers.weight_and_bias(node)
    parameters = edit.constant(weight_node), None if bias_node is None else edit.constant(bias_node)
    new = folded_inputs(node, reader.features, parameters, gain, shift)
    name = layers.parameter_name(weight_node, f"{node.name}.weight")
    bias_name = f"{name.removesuffix('.weight')}.bias"
    bias_name = bias_name if bias_node is None else layers.parameter_name(bias_node, bias_name)
    with edit.before(node):
        weight = edit.parameter(name, new.weight, like=weight_node)
        stored_bias = bias_node
        if new.bias is not None and shift is not None:
            stored_bias = edit.parameter(bias_name, new.bias, like=bias_node or weight_node)
        args, kwargs = layers.with_parameters(node, weight, stored_bias)
        edit.replace(node, edit.call(node.target, source, *args[1:], **kwargs))
