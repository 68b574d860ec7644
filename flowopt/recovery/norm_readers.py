"""What reads a swapped norm: its linear layers, the operators on the way to them, and whether anything else does."""

from dataclasses import dataclass

import torch
from torch import fx, nn

from flowopt.analysis.axes import feature_axis
from flowopt.analysis.readers import readers
from flowopt.recovery.trainable import Trainable

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True, slots=True)
class NormReaders:
    """Readers of one norm's value.

    Attributes:
        norm: the node whose value is read.
        layers: linear layers that read it, directly or through operators that only move it, whose weights are
            trained and nobody else's; in graph order.
        path: those operators, in graph order.
        others: whether anything else reads it, such as a residual addition.
    """

    norm: fx.Node
    layers: tuple[fx.Node, ...]
    path: tuple[fx.Node, ...]
    others: bool


def norm_readers(student: Trainable, name: str) -> NormReaders:
    """The readers of a norm that a leaf of the student takes the place of."""
    norm = student.program.node(name)
    axis = feature_axis(norm, getattr(student.leaves[name], "channel_axis", -1))
    found = list(readers(norm, axis)) if axis is not None else []
    own = [reader for reader in found if reads_input(reader.node, reader.source) and is_own(student, reader.node)]
    layers = sorted({reader.node for reader in own})
    path = sorted({node for reader in own for node in reader.path})
    others = len(own) < len(found) or axis is None
    return NormReaders(norm, tuple(layers), tuple(path), others)


def reads_input(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node is a linear layer of ``source`` with a stored weight."""
    return node.target is LINEAR and node.args[0] is source and node.all_input_nodes.count(source) == 1


def is_own(student: Trainable, layer: fx.Node) -> bool:
    """Whether weight and bias of a linear layer are trained and read by it alone: ties would bind others to its fit."""
    return all(own_parameter(student, stored) is not None for stored in layer.args[1:] if stored is not None)


def own_parameter(student: Trainable, stored: object) -> nn.Parameter | None:
    """The parameter of a stored tensor that one operator reads; None for all others."""
    if not isinstance(stored, fx.Node) or stored.op != "get_attr":
        return None
    parameter = student.tensors.parameter(str(stored.target))
    reading = [
        user
        for node in student.program.graph.nodes
        if node.op == "get_attr" and student.tensors.parameter(str(node.target)) is parameter
        for user in node.users
    ]
    return parameter if len(reading) == 1 else None
