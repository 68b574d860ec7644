"""Linear layers, convolutions and embeddings: their parameters, and scaling what they give or read."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.constants import needed_nodes
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
LINEAR = _aten.linear.default
EMBEDDING = _aten.embedding.default
CONVOLUTIONS = frozenset(
    {
        _aten.conv1d.default,
        _aten.conv2d.default,
        _aten.conv3d.default,
        _aten.conv1d.padding,
        _aten.conv2d.padding,
        _aten.conv3d.padding,
    }
)
TRANSPOSED = frozenset({_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input})
LAYERS = frozenset({LINEAR, *CONVOLUTIONS, *TRANSPOSED})


def weight_and_bias(layer: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The nodes of a layer's parameters; a table of embeddings is a weight."""
    weight = layer.args[0] if layer.target is EMBEDDING else layer.args[1]
    assert isinstance(weight, fx.Node)
    if layer.target is EMBEDDING:
        return weight, None
    bias = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    return weight, bias if isinstance(bias, fx.Node) else None


def feature_axis_of(layer: fx.Node, value: fx.Node) -> int | None:
    """The axis of a layer's input or output ``value`` that holds its features; None when no shape is recorded."""
    found, weight = recorded_tensor(value), recorded_tensor(weight_and_bias(layer)[0])
    if found is None or weight is None:
        return None
    # Unbatched convolutions have their channels first, others have them second.
    return found.dim() - 1 - (0 if layer.target in (LINEAR, EMBEDDING) else weight.dim() - 2)


def with_parameters(layer: fx.Node, weight: fx.Node, bias: fx.Node | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer's call with other parameters."""
    if layer.target is EMBEDDING:
        return (weight, *layer.args[1:]), dict(layer.kwargs)
    kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("weight", "bias")}
    return (layer.args[0], weight, bias, *layer.args[3:]), kwargs


def scaled_outputs(layer: fx.Node, weight: Tensor, factors: Tensor) -> Tensor:
    """The weight whose layer gives every output feature times its factor."""
    if layer.target is EMBEDDING:
        return weight * factors
    spatial = [1] * (weight.dim() - 2)
    if layer.target not in TRANSPOSED:
        return weight * factors.reshape(-1, 1, *spatial)
    groups = groups_of(layer)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * factors.reshape(groups, 1, -1, *spatial)).reshape(weight.shape)


def scaled_inputs(layer: fx.Node, weight: Tensor, factors: Tensor) -> Tensor:
    """The weight whose layer gives the same when every input feature was divided by its factor."""
    spatial = [1] * (weight.dim() - 2)
    if layer.target in TRANSPOSED:
        return weight * factors.reshape(-1, 1, *spatial)
    groups = 1 if layer.target is LINEAR else groups_of(layer)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * factors.reshape(groups, 1, -1, *spatial)).reshape(weight.shape)


def output_features(layer: fx.Node, weight: Tensor) -> int:
    """Number of features that a layer with this weight gives."""
    if layer.target is EMBEDDING:
        return weight.shape[1]
    return weight.shape[1] * groups_of(layer) if layer.target in TRANSPOSED else weight.shape[0]


def input_features(layer: fx.Node, weight: Tensor) -> int:
    """Number of features that a layer with this weight reads."""
    if layer.target in TRANSPOSED:
        return weight.shape[0]
    return weight.shape[1] * (1 if layer.target is LINEAR else groups_of(layer))


def freed_bytes(parameters: Collection[fx.Node], layers: Collection[fx.Node]) -> int:
    """Bytes of stored tensors behind ``parameters`` that nobody reads any more once ``layers`` are replaced."""
    expressions = needed_nodes(parameters, ())
    inside = expressions.union(layers)
    own: dict[str, list[fx.Node]] = {}
    for node in next(iter(parameters)).graph.find_nodes(op="get_attr"):
        own.setdefault(str(node.target), []).append(node)
    mine = (nodes for nodes in own.values() if expressions & set(nodes))
    return stored_bytes([nodes[0] for nodes in mine if all(n.users.keys() <= inside for n in nodes)])


def stored_bytes(nodes: Collection[fx.Node]) -> int:
    """Bytes of the values of some nodes."""
    values = (recorded_tensor(node) for node in nodes)
    return sum(value.numel() * value.element_size() for value in values if value is not None)


def parameter_name(node: fx.Node, otherwise: str) -> str:
    """The name of a stored tensor, for the one that takes its place."""
    return str(node.target) if node.op == "get_attr" else otherwise


def groups_of(layer: fx.Node) -> int:
    """Groups of a convolution."""
    at = 6
    groups = layer.args[at] if len(layer.args) > at else layer.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return groups
