"""Parameter-only subgraphs: found, and evaluated."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.evaluate import Value
from flowopt.ir.float64 import raised_arguments

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
        if current.op != "call_function" or len(seen) > MAX_NODES or _is_random(current):
            return False
        pending.extend(current.all_input_nodes)
    return True


def node_value(node: fx.Node, read: Callable[[str], Tensor], given: Mapping[fx.Node, Value], *, raised: bool) -> Value:
    """Value of one node, computed backwards from it.

    Args:
        node: what to compute.
        read: the tensor of a name, raised already where ``raised`` is set.
        given: values at which the walk stops.
        raised: evaluate in float64, operator arguments included.

    Raises:
        InternalError: the walk reaches an input that is not given.
    """
    values: dict[fx.Node, Value] = dict(given)

    def compute(current: fx.Node) -> Value:
        if current in values:
            return values[current]
        if current.op == "get_attr":
            result: Value = read(str(current.target))
        else:
            args, kwargs = fx.map_arg(current.args, compute), fx.map_arg(current.kwargs, compute)
            if raised:
                args, kwargs = raised_arguments(current, args, kwargs)
            if not callable(current.target):
                raise InternalError(f"{current.format_node()} has no given value")
            result = current.target(*args, **kwargs)
        values[current] = result
        return result

    with torch.no_grad():
        return compute(node)


def constant_value(node: fx.Node, read: Callable[[str], Tensor], *, raised: bool) -> Tensor:
    """Value of a node for which ``is_parameter_only`` holds; arguments as for ``node_value``."""
    value = node_value(node, read, {}, raised=raised)
    if not isinstance(value, Tensor):
        raise InternalError(f"{node.name} is not a tensor but {type(value).__name__}")
    return value


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags
