"""Parameter-only subgraphs: found, and evaluated."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.evaluate import Value
from flowopt.ir.float64 import float64_by_default, raised_arguments
from flowopt.ir.randomness import draws_random_numbers

# A parameter-only expression (1 + w, a transposed weight, g * v / |v|) is small; a larger one is no gain or weight.
MAX_NODES = 64


def is_parameter_only(node: fx.Node) -> bool:
    """True when the node's value depends on stored tensors alone: no input, no randomness, no symbolic size."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr":
            continue
        if current.op != "call_function" or len(seen) > MAX_NODES or draws_random_numbers(current):
            return False
        pending.extend(current.all_input_nodes)
    return True


def node_value(node: fx.Node, read: Callable[[str], Tensor], given: Mapping[fx.Node, Value], *, raised: bool) -> Value:
    """Value of one node, computed backwards from it; arguments as for ``node_values``."""
    return node_values((node,), read, given, raised=raised)[node]


def node_values(
    nodes: Iterable[fx.Node], read: Callable[[str], Tensor], given: Mapping[fx.Node, Value], *, raised: bool
) -> dict[fx.Node, Value]:
    """Values of some nodes of one graph, and of all that they are computed from.

    Args:
        nodes: what to compute.
        read: the tensor of a name, raised already where ``raised`` is set.
        given: values at which the walk back stops.
        raised: evaluate in float64, operator arguments included.

    Raises:
        InternalError: the walk reaches an input that is not given.
    """
    needed: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        current = pending.pop()
        if current not in needed and current not in given:
            needed.add(current)
            pending.extend(current.all_input_nodes)
    values: dict[fx.Node, Value] = dict(given)
    with torch.no_grad(), float64_by_default(raised):
        # Nodes sort by their place in the graph.
        for current in sorted(needed):
            values[current] = _computed(current, read, values, raised)
    return values


def _computed(node: fx.Node, read: Callable[[str], Tensor], values: Mapping[fx.Node, Value], raised: bool) -> Value:
    if node.op == "get_attr":
        return read(str(node.target))
    if not callable(node.target):
        raise InternalError(f"{node.format_node()} has no given value")
    args, kwargs = fx.map_arg(node.args, values.__getitem__), fx.map_arg(node.kwargs, values.__getitem__)
    if raised:
        args, kwargs = raised_arguments(args, kwargs)
    return node.target(*args, **kwargs)


def constant_value(node: fx.Node, read: Callable[[str], Tensor], *, raised: bool) -> Tensor:
    """Value of a node for which ``is_parameter_only`` holds; arguments as for ``node_value``."""
    value = node_value(node, read, {}, raised=raised)
    if not isinstance(value, Tensor):
        raise InternalError(f"{node.name} is not a tensor but {type(value).__name__}")
    return value
