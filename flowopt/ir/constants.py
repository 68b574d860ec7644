"""Parameter-only subgraphs: found, and evaluated."""

from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.evaluate import RUN_ERRORS, Stored, Value, called
from flowopt.ir.float64 import float64_by_default, raised_tensor
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
    """Values of some nodes of one graph.

    Args:
        nodes: what to compute.
        read: the tensor of a name; it is raised here where ``raised`` is set.
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

    Each stored tensor is read once per operator that takes it, and every other value goes after its last reader, so
    that a walk through a whole model needs no more memory than its run. Other arguments as there.

    Args:
        givens: each holds values of the same nodes.

    Returns:
        For every set the values, or what an operator raised for it (one of ``RUN_ERRORS``); the others go on.

    Raises:
        InternalError: the walk reaches an input that is not given.
    """
    wanted = tuple(dict.fromkeys(nodes))
    given = givens[0] if givens else {}
    steps = _steps(wanted, given)
    last_reads = _last_reads(steps, set(wanted))
    constant: dict[fx.Node, Value] = {}
    constants: set[fx.Node] = set()
    walks: list[dict[fx.Node, Value] | Exception] = [dict(given) for given in givens]
    with torch.no_grad(), float64_by_default(raised):
        for current in steps:
            stored = Stored(read, raised)
            sources = [n for n in current.all_input_nodes if n in given or n.op != "get_attr"]
            if current.op != "placeholder" and constants.issuperset(sources) and not draws_random_numbers(current):
                try:
                    constant[current] = _computed(current, stored, constant)
                except RUN_ERRORS as error:
                    return [error for _ in walks]
                constants.add(current)
            else:
                for at, walk in enumerate(walks):
                    if isinstance(walk, dict):
                        walks[at] = _stepped(current, stored, walk, constant)
            for dead in last_reads.get(current, ()):
                for values in (constant, *walks):
                    if isinstance(values, dict):
                        values.pop(dead, None)
    return [walk if isinstance(walk, Exception) else _kept(wanted, {**constant, **walk}, raised) for walk in walks]


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


def _steps(wanted: Iterable[fx.Node], given: Container[fx.Node]) -> list[fx.Node]:
    """What is computed, in graph order. Of the stored tensors only wanted ones: others are read by their readers."""
    wanted = set(wanted)
    return sorted(n for n in needed_nodes(wanted, given) if n.op != "get_attr" or n in wanted)


def _last_reads(steps: Sequence[fx.Node], wanted: Container[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For every step, the values that nobody reads after it and nobody wants."""
    dying: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(steps):
        for source in node.all_input_nodes:
            if source not in seen and source not in wanted:
                dying.setdefault(node, []).append(source)
            seen.add(source)
    return dying


def _kept(wanted: Iterable[fx.Node], values: Mapping[fx.Node, Value], raised: bool) -> dict[fx.Node, Value]:
    kept = {node: values[node] for node in wanted}
    # A large weight is transposed as it is stored, for readers that raise it in parts.
    return {node: raised_tensor(v) if raised and isinstance(v, Tensor) else v for node, v in kept.items()}


def _stepped(
    node: fx.Node, stored: Stored, walk: dict[fx.Node, Value], constant: Mapping[fx.Node, Value]
) -> dict[fx.Node, Value] | Exception:
    try:
        walk[node] = _computed(node, stored, ChainMap(walk, constant))  # type: ignore[arg-type]  # only read
    except RUN_ERRORS as error:
        return error
    return walk


def _computed(node: fx.Node, stored: Stored, values: Mapping[fx.Node, Value]) -> Value:
    if node.op == "get_attr":
        return stored.value(node, node)
    if node.op == "placeholder":
        raise InternalError(f"{node.format_node()} has no given value")
    # Stored tensors stand first in the graph, but are read where they are needed, and not kept.
    return called(node, lambda n: values[n] if n in values else stored.value(n, node), raised=stored.raised)


def constant_value(node: fx.Node, read: Callable[[str], Tensor], *, raised: bool) -> Tensor:
    """Value of a node for which ``is_parameter_only`` holds; arguments as for ``node_value``."""
    value = node_value(node, read, {}, raised=raised)
    if not isinstance(value, Tensor):
        raise InternalError(f"{node.name} is not a tensor but {type(value).__name__}")
    return value
