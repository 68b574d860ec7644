"""Put one program into another: its nodes again, on values of the other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.rewrite.edit import Edit


def inlined(edit: Edit, inner: Program, inputs: Mapping[str, fx.Node], *, prefix: str) -> fx.Node:
    """The nodes of a program again, where ``edit`` stands.

    Values are propagated anew, so that sizes are those of the given nodes: where they are free, what the inner program
    computes of sizes stays computed at run time. Its free dimensions have to be free for it, whatever their names.

    Args:
        edit: where the nodes go.
        inner: one output; its inputs are as many axes, of the dtypes, as the nodes they are given.
        inputs: node of the outer program by name of the inner input.
        prefix: of the names of stored tensors.

    Returns:
        The node of the output.

    Raises:
        InternalError: an input is not given, or there are several outputs or state.
    """
    found: dict[fx.Node, fx.Node] = {}
    device = _device(inputs)
    for node in inner.graph.nodes:
        if node.op == "placeholder":
            if node.name not in inputs:
                raise InternalError(f"nothing is given for the input {node.name!r} of {inner.provenance.source}")
            found[node] = inputs[node.name]
        elif node.op == "get_attr":
            tensor = inner.tensors[str(node.target)]
            found[node] = edit.stored(f"{prefix}.{node.target}", tensor.to(device))
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: found[one])
            found[node] = edit.call(node.target, *args, **kwargs)
    returned: Any = inner.graph.output_node().args[0]
    if len(returned) != 1 or any(i.state is not None for i in inner.inputs):
        raise InternalError(f"{inner.provenance.source} gives {len(returned)} values, or has state")
    return found[returned[0]]


def _device(inputs: Mapping[str, fx.Node]) -> torch.device:
    recorded = [t for node in inputs.values() if isinstance(t := recorded_tensor(node), Tensor)]
    return recorded[0].device if recorded else torch.device("cpu")
