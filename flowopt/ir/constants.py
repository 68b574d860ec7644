"""Parameter-only subgraphs: found, and evaluated."""

from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.evaluate import RUN_ERRORS, Value
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
    (found,) = node_values_together(nodes, read, [given], raised=raised)
    if isinstance(found, Exception):
        raise found
    return found


def node_values_together(
    nodes: Iterable[fx.Node], read: Callable[[str], Tensor], givens: Sequence[Mapping[fx.Node, Value]], *, raised: bool
) -> list[dict[fx.Node, Value] | Exception]:
    """As ``node_values``, for several sets of given values: what depends on stored tensors alone is computed once.

    Other arguments as there.

    Args:
        givens: each holds values of the same nodes.

    Returns:
        For every set the values, or what an operator raised for it (one of ``RUN_ERRORS``); the others go on.

    Raises:
        InternalError: the walk reaches an input that is not given.
    """
    # Nodes sort by their place in the graph.
    needed = sorted(needed_nodes(nodes, givens[0] if givens else {}))
    constant: dict[fx.Node, Value] = {}
    walks: list[dict[fx.Node, Value] | Exception] = [dict(given) for given in givens]
    with torch.no_grad(), float64_by_default(raised):
        for current in needed:
            is_constant = current.op != "placeholder" and all(n in constant for n in current.all_input_nodes)
            if is_constant and not draws_random_numbers(current):
                try:
                    constant[current] = _computed(current, read, constant, raised)
                except RUN_ERRORS as error:
                    return [error for _ in walks]
                continue
            for at, walk in enumerate(walks):
                if isinstance(walk, dict):
                    walks[at] = _stepped(current, read, walk, constant, raised)
    return [{**constant, **walk} if isinstance(walk, dict) else walk for walk in walks]


def needed_nodes(nodes: Iterable[fx.Node], given: Container[fx.Node]) -> set[fx.Node]:
    """Some nodes and all that they are computed from; the walk back stops at given ones, which are not among them."""
    needed: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        current = pending.pop()
        if current not in needed and current not in given:
            needed.add(current)
            pending.extend(current.all_input_nodes)
    return needed


def _stepped(
    node: fx.Node,
    read: Callable[[str], Tensor],
    walk: dict[fx.Node, Value],
    constant: Mapping[fx.Node, Value],
    raised: bool,
) -> dict[fx.Node, Value] | Exception:
    try:
        walk[node] = _computed(node, read, ChainMap(walk, constant), raised)  # type: ignore[arg-type]  # only read
    except RUN_ERRORS as error:
        return error
    return walk


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
