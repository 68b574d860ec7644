"""Where float regimes enter a model that reads integers only."""

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program


def first_float(program: Program) -> fx.Node | None:
    """The first embedding of an input, else the first float tensor that is computed from one; None without either.

    None too where its shape depends on data.
    """
    dependent: set[fx.Node] = set()
    first: fx.Node | None = None
    node: fx.Node
    for node in program.graph.nodes:
        if node.op != "placeholder" and not any(n in dependent for n in node.all_input_nodes):
            continue
        dependent.add(node)
        value = recorded_tensor(node)
        if node.op == "call_function" and value is not None and value.is_floating_point() and value.dim() > 1:
            if node.target is torch.ops.aten.embedding.default:
                return _with_known_shape(program, node)
            first = first or node
    return _with_known_shape(program, first) if first is not None else None


def _with_known_shape(program: Program, node: fx.Node) -> fx.Node | None:
    value = recorded_tensor(node)
    assert value is not None
    try:
        program.concrete_shape(value, {dim.name: dim.traced for dim in program.dims})
    except TypeError:
        return None
    return node
