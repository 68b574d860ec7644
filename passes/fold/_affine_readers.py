"""Layers that take a gain and a shift of their input: linear layers, and convolutions along their channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.analysis.feature_layout import PlacedReader
from flowopt.analysis.sliding import sliding_of
from flowopt.ir.metadata import module_path
from flowopt.passes.fold import _layers as layers
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


def require_finite(site: Site, reader: AffineReader, gain: Tensor | None, shift: Tensor | None) -> None:
    """Refuse where a folded parameter would leave the range of its dtype."""
    weight_node, bias_node = layers.weight_and_bias(reader.node)
    weight = site.constant(weight_node, f"the weight of {reader.node.name}")
    bias = None if bias_node is None else site.constant(bias_node, f"the bias of {reader.node.name}")
    limit = torch.finfo(site.recorded(reader.node).dtype).max
    folded = _folded(reader, weight, bias, gain, shift)
    fits = all(t is None or bool((t.abs() <= limit).all()) for t in folded)
    site.require(fits, "not-finite", f"the folded weight of {reader.node.name} would exceed {limit:.3g}", reader.node)


def fold(edit: Edit, reader: AffineReader, source: fx.Node, gain: Tensor | None, shift: Tensor | None) -> None:
    """Replace the layer by one that reads ``source``, the normalised value, as it is."""
    node = reader.node
    weight_node, bias_node = layers.weight_and_bias(node)
    bias = None if bias_node is None else edit.constant(bias_node)
    new_weight, new_bias = _folded(reader, edit.constant(weight_node), bias, gain, shift)
    name = layers.parameter_name(weight_node, f"{node.name}.weight")
    bias_name = f"{name.removesuffix('.weight')}.bias"
    bias_name = bias_name if bias_node is None else layers.parameter_name(bias_node, bias_name)
    with edit.before(node):
        weight = edit.parameter(name, new_weight, like=weight_node)
        stored_bias = bias_node
        if new_bias is not None and shift is not None:
            stored_bias = edit.parameter(bias_name, new_bias, like=bias_node or weight_node)
        args, kwargs = layers.with_parameters(node, weight, stored_bias)
        edit.replace(node, edit.call(node.target, source, *args[1:], **kwargs))


def _folded(
    reader: AffineReader, weight: Tensor, bias: Tensor | None, gain: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    at = list(reader.features)
    new_weight = weight if gain is None else layers.scaled_inputs(reader.node, weight, gain[at])
    if shift is None:
        return new_weight, bias
    # What every output gets of an input that is the shift everywhere.
    shifted = layers.scaled_inputs(reader.node, weight, shift[at])
    added = shifted.flatten(1).sum(1)
    return new_weight, added if bias is None else bias + added
