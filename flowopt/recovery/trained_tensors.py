"""Which stored tensors of a program are weights, told by what reads them.

A program keeps names and values, but not which tensor was a parameter and which a buffer; and passes store new tensors
under new names. What an operator uses a tensor for is still there: a rotary table and a gain both scale a value, but
the gain is a vector, and frequencies meet positions, which no weight did.
"""

import operator
from typing import Any, Final

import torch
from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program

_aten = torch.ops.aten
# Positions of weights among an operator's arguments. Running statistics are none.
_WEIGHTS: Final[dict[Any, tuple[int, ...]]] = {
    _aten.linear.default: (1, 2),
    _aten.convolution.default: (1, 2),
    _aten.conv1d.default: (1, 2),
    _aten.conv2d.default: (1, 2),
    _aten.conv2d.padding: (1, 2),
    _aten.conv1d.padding: (1, 2),
    _aten.conv3d.default: (1, 2),
    _aten.conv_transpose1d.default: (1, 2),
    _aten.conv_transpose2d.input: (1, 2),
    _aten.conv_transpose3d.input: (1, 2),
    _aten.embedding.default: (0,),
    _aten.layer_norm.default: (2, 3),
    _aten.native_layer_norm.default: (2, 3),
    _aten.rms_norm.default: (2,),
    _aten.group_norm.default: (2, 3),
    _aten.native_group_norm.default: (1, 2),
    _aten.instance_norm.default: (1, 2),
    _aten.batch_norm.default: (1, 2),
    _aten._native_batch_norm_legit_no_training.default: (1, 2),
    _aten.prelu.default: (1,),
    _aten._weight_norm.default: (0, 1),
    _aten._weight_norm_interface.default: (0, 1),
    _aten.lstm.input: (2,),
    _aten.gru.input: (2,),
}
_PRODUCTS: Final = {getattr(_aten, name).default for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")}
# What these give is still the tensor, in another order, or parts of it.
_MOVES: Final = {
    getattr(getattr(_aten, name), overload)
    for name, overload in (
        ("reshape", "default"), ("view", "default"), ("permute", "default"), ("transpose", "int"), ("t", "default"),
        ("unsqueeze", "default"), ("squeeze", "default"), ("squeeze", "dim"), ("squeeze", "dims"),
        ("expand", "default"), ("expand_as", "default"), ("repeat", "default"), ("slice", "Tensor"),
        ("select", "int"), ("clone", "default"), ("contiguous", "default"), ("alias", "default"),
        ("_to_copy", "default"), ("to", "dtype"), ("type_as", "default"), ("flatten", "using_ints"),
        ("index", "Tensor"), ("index_select", "default"), ("split", "Tensor"), ("chunk", "default"),
        ("add", "Scalar"), ("mul", "Scalar"), ("neg", "default"),
    )
}  # fmt: skip
# A score that models add for a hidden position is at most this: no weight is.
_HIDDEN_SCORE: Final = -1e4


def trained_tensors(program: Program) -> frozenset[str]:
    """Names of the floating stored tensors that an operator reads as a weight.

    Weights are the operands for it of linear layers, convolutions, embeddings, norms and recurrent layers; matrices
    that an activation is multiplied with; vectors that scale an activation; whatever is added to one or stands beside
    it (positions, class tokens), unless it hides positions. An activation descends from a floating input, an embedding
    or a layer: integers made into floats are none. Tensors of one number without an axis are constants.
    """
    activations = _activations(program.graph)
    found = set()
    for node in program.graph.nodes:
        if node.op != "get_attr" or not program.tensors[str(node.target)].is_floating_point():
            continue
        if _is_weight(node, program.tensors[str(node.target)], activations):
            found.add(str(node.target))
    return frozenset(found)


def _activations(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        value = recorded_tensor(node)
        starts = (node.op == "placeholder" and value is not None and value.is_floating_point()) or (
            node.target in _WEIGHTS
        )
        if starts or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _is_weight(stored: fx.Node, tensor: Tensor, activations: set[fx.Node]) -> bool:
    seen: set[fx.Node] = set()
    pending = [stored]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        for reader in node.users:
            if _reads_as_weight(reader, node, tensor, activations):
                return True
            if _hands_on(reader, node, activations):
                pending.append(reader)
    return False


def _reads_as_weight(reader: fx.Node, node: fx.Node, tensor: Tensor, activations: set[fx.Node]) -> bool:
    at = _WEIGHTS.get(reader.target)
    if at is not None and any(_holds(reader.args[i], node) for i in at if i < len(reader.args)):
        return True
    meets_activation = any(source in activations for source in reader.all_input_nodes if source is not node)
    if not meets_activation:
        return False
    if reader.target in _PRODUCTS:
        return True
    if reader.target is _aten.mul.Tensor:
        return _rank(node) > 0 and _long_axes(node) <= 1
    if reader.target in (_aten.add.Tensor, _aten.cat.default, _aten.stack.default):
        return _rank(node) > 0 and not _hides(tensor)
    return False


def _hands_on(reader: fx.Node, node: fx.Node, activations: set[fx.Node]) -> bool:
    """Whether the tensor goes on in what ``reader`` gives: moved, or met by nothing but other stored tensors."""
    if reader.target is operator.getitem:
        return True
    if reader.target in _MOVES:
        return bool(reader.args) and reader.args[0] is node
    others = (_aten.mul.Tensor, _aten.add.Tensor, _aten.cat.default, _aten.stack.default)
    is_joined = reader.target in others or reader.target in _PRODUCTS
    return is_joined and not any(source in activations for source in reader.all_input_nodes)


def _holds(argument: Any, node: fx.Node) -> bool:
    return argument is node or (isinstance(argument, (list, tuple)) and node in argument)


def _rank(node: fx.Node) -> int:
    value = recorded_tensor(node)
    return 0 if value is None else value.dim()


def _long_axes(node: fx.Node) -> int:
    """How many axes are longer than one; a free one counts, unless the value is only expanded along it."""
    source = node
    while source.target in (_aten.expand.default, _aten.expand_as.default) and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    value = recorded_tensor(source)
    return 0 if value is None else sum(not isinstance(size, int) or size != 1 for size in value.shape)


def _hides(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and (not bool(tensor.isfinite().all()) or float(tensor.min()) <= _HIDDEN_SCORE)
