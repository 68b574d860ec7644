"""A program on another device: its tensors, and the tensors that it makes on the way."""

import torch
from torch import fx

from flowopt.program.program import Program


def placed(program: Program, device: torch.device) -> Program:
    """A copy of a program that computes on ``device``; inputs have to lie there.

    What the graph has recorded of its values still names the device that it was captured on. A program that is placed
    on that one again is what it was.

    Args:
        program: is left as it is. Tensors that lie on the device already are shared.
        device: an index belongs to it where there are several of a kind.
    """
    copy = program.copy()
    copy.tensors = {name: tensor.to(device) for name, tensor in copy.tensors.items()}
    copy.example = {name: tensor.to(device) for name, tensor in copy.example.items()}
    for node in copy.graph.nodes:
        _place(node, device)
    return copy


def _place(node: fx.Node, device: torch.device) -> None:
    node.args = fx.node.map_aggregate(node.args, lambda value: device if isinstance(value, torch.device) else value)
    if isinstance(node.kwargs.get("device"), torch.device):
        node.kwargs = {**node.kwargs, "device": device}
