"""Evaluate a functional graph node by node, freeing every value after its last reader.

The walk is the same for the program itself, for its float64 oracle and for the one-ulp ensemble: only
the function that reads a tensor, and whether dtypes are raised, differ. Parameters are read when they
are needed and dropped again, so a raised copy of a model never lives as a whole.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.float64 import float64_by_default, raised_arguments

Value = Any  # a node's value: a tensor, a number, or a tuple of them


def evaluate(
    graph: fx.Graph,
    read: Callable[[str], Tensor],
    inputs: Mapping[str, Tensor],
    *,
    raised: bool = False,
    override: Mapping[str, Tensor] | None = None,
    observe: Callable[[fx.Node, Value], None] | None = None,
) -> tuple[Value, ...]:
    """Run ``graph`` eagerly without autograd.

    Args:
        graph: functional ATen graph whose ``get_attr`` targets are tensor names.
        read: the tensor of a name, already in the precision that is wanted.
        inputs: placeholder name to tensor.
        raised: floating dtypes in operator arguments become float64 (complex64 becomes complex128).
        override: node name to the tensor that replaces the node's value (for injected inputs).
        observe: called with every computed node and its value; stored tensors are not among them.

    Returns:
        The values of the output node, flat.

    Raises:
        InternalError: a placeholder without an input.
    """
    env: dict[fx.Node, Value] = {}
    last_reads = _last_reads(graph)
    override = override or {}

    def lookup(node: fx.Node) -> Value:
        # Stored tensors stand first in the graph, but are read where they are needed, and not kept.
        return env[node] if node in env else read(str(node.target))

    with torch.no_grad(), float64_by_default(raised):
        for node in graph.nodes:
            if node.op == "output":
                return tuple(fx.map_arg(node.args[0], lookup))
            if node.op == "get_attr" and node.name not in override:
                continue
            try:
                value = override[node.name] if node.name in override else _value(node, inputs, raised, lookup)
            except Exception as error:
                error.add_note(f"while evaluating {node.format_node()}")
                raise
            env[node] = value
            if observe is not None:
                observe(node, value)
            for dead in last_reads.get(node, ()):
                env.pop(dead, None)
    raise InternalError("the graph has no output node")


def _value(
    node: fx.Node,
    inputs: Mapping[str, Tensor],
    raised: bool,
    lookup: Callable[[fx.Node], Value],
) -> Value:
    if node.op == "placeholder":
        if node.name not in inputs:
            raise InternalError(f"no value for input {node.name!r}; got {sorted(inputs)}")
        return inputs[node.name]
    args, kwargs = fx.map_arg(node.args, lookup), fx.map_arg(node.kwargs, lookup)
    if raised:
        args, kwargs = raised_arguments(args, kwargs)
    if not callable(node.target):
        raise InternalError(f"{node.op} {node.target} is not functional ATen")
    return node.target(*args, **kwargs)


def _last_reads(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that nobody reads after it (itself, when nobody reads it at all)."""
    dying: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for source in (node, *node.all_input_nodes):
            if source not in seen and node.op != "output":
                dying.setdefault(node, []).append(source)
            seen.add(source)
    return dying
