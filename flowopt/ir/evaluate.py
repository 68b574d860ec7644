"""Evaluate a functional graph node by node, freeing every value after its last reader.

The walk is the same for the program itself, for its float64 oracle and for the one-ulp ensemble: only
the function that reads a tensor, and whether dtypes are raised, differ. Parameters are read when they
are needed and dropped again, so a raised copy of a model never lives as a whole. Several sets of inputs walk
together, because raising or moving a parameter often costs more than running its operator on a small case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.float64 import float64_by_default, raised_arguments
from flowopt.ir.streamed import is_streamed, raised_unless_streamed, streamed_call

Value = Any  # a node's value: a tensor, a number, or a tuple of them

# What torch's operators raise for sizes and dtypes that they do not take.
RUN_ERRORS = (RuntimeError, IndexError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class Feed:
    """What one walk gets.

    Attributes:
        inputs: placeholder name to tensor.
        override: node name to the value that replaces the node's (for injected inputs), or to a function that makes
            it of the node's own.
        observe: called with every computed node and its value; stored tensors are not among them.
    """

    inputs: Mapping[str, Tensor]
    override: Mapping[str, Value] = field(default_factory=dict)
    observe: Callable[[fx.Node, Value], None] | None = None


def evaluate(
    graph: fx.Graph,
    read: Callable[[str], Tensor],
    inputs: Mapping[str, Tensor],
    *,
    raised: bool = False,
    override: Mapping[str, Value] | None = None,
    observe: Callable[[fx.Node, Value], None] | None = None,
) -> tuple[Value, ...]:
    """Run ``graph`` eagerly without autograd.

    Args:
        graph: functional ATen graph whose ``get_attr`` targets are tensor names.
        read: the tensor of a name.
        inputs: placeholder name to tensor.
        raised: stored tensors are raised as they are read, and floating dtypes in operator arguments become float64
            (complex64 becomes complex128).
        override: node name to the value that replaces the node's (for injected inputs).
        observe: called with every computed node and its value; stored tensors are not among them.

    Returns:
        The values of the output node, flat.

    Raises:
        InternalError: a placeholder without an input.
    """
    (found,) = evaluate_together(graph, read, [Feed(inputs, override or {}, observe)], raised=raised)
    if isinstance(found, Exception):
        raise found
    return found


def evaluate_together(
    graph: fx.Graph, read: Callable[[str], Tensor], feeds: Sequence[Feed], *, raised: bool = False
) -> list[tuple[Value, ...] | Exception]:
    """Run ``graph`` for several sets of inputs, each stored tensor being read once per operator that takes it.

    Returns:
        For every feed the values of the output node, or what an operator raised for it (one of ``RUN_ERRORS``);
        the other feeds go on.

    Raises:
        InternalError: a placeholder without an input.
    """
    walks = [_Walk(feed) for feed in feeds]
    last_reads = _last_reads(graph)
    with torch.no_grad(), float64_by_default(raised):
        for node in graph.nodes:
            if node.op == "get_attr" and not any(node.name in walk.feed.override for walk in walks):
                continue
            stored = Stored(read, raised)
            if node.op == "output":
                return [walk.result(node, stored) for walk in walks]
            for walk in walks:
                walk.step(node, stored, last_reads.get(node, ()))
    raise InternalError("the graph has no output node")


class Stored:
    """The stored tensors that one node reads, each read once."""

    def __init__(self, read: Callable[[str], Tensor], raised: bool) -> None:
        self._read = read
        self.raised = raised
        self._values: dict[fx.Node, Tensor] = {}

    def value(self, stored: fx.Node, reader: fx.Node) -> Tensor:
        """The tensor; raised where that is wanted, unless it is large and its reader takes it in parts."""
        if stored not in self._values:
            tensor = self._read(str(stored.target))
            self._values[stored] = raised_unless_streamed(tensor, stored, reader) if self.raised else tensor
        return self._values[stored]


class _Walk:
    """One feed on its way through the graph."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._env: dict[fx.Node, Value] = {}
        self._failed: Exception | None = None

    def step(self, node: fx.Node, stored: Stored, dying: Sequence[fx.Node]) -> None:
        if self._failed is not None or (node.op == "get_attr" and node.name not in self.feed.override):
            return
        try:
            value = self._overridden(node, stored) if node.name in self.feed.override else self._value(node, stored)
        except RUN_ERRORS as error:
            error.add_note(f"while evaluating {node.format_node()}")
            self._failed = error
            self._env.clear()
            return
        except Exception as error:
            error.add_note(f"while evaluating {node.format_node()}")
            raise
        self._env[node] = value
        if self.feed.observe is not None:
            self.feed.observe(node, value)
        for dead in dying:
            self._env.pop(dead, None)

    def result(self, output: fx.Node, stored: Stored) -> tuple[Value, ...] | Exception:
        if self._failed is not None:
            return self._failed
        returned: Any = output.args[0]
        return tuple(fx.map_arg(returned, lambda node: self._lookup(node, stored, output)))

    def _lookup(self, node: fx.Node, stored: Stored, reader: fx.Node) -> Value:
        # Stored tensors stand first in the graph, but are read where they are needed, and not kept.
        return self._env[node] if node in self._env else stored.value(node, reader)

    def _overridden(self, node: fx.Node, stored: Stored) -> Value:
        given = self.feed.override[node.name]
        return given(self._value(node, stored)) if callable(given) else given

    def _value(self, node: fx.Node, stored: Stored) -> Value:
        if node.op == "placeholder":
            if node.name not in self.feed.inputs:
                raise InternalError(f"no value for input {node.name!r}; got {sorted(self.feed.inputs)}")
            return self.feed.inputs[node.name]
        return called(node, lambda n: self._lookup(n, stored, node), raised=stored.raised)


def called(node: fx.Node, lookup: Callable[[fx.Node], Value], *, raised: bool) -> Value:
    """What the operator of a node gives for the values of its inputs.

    Raises:
        InternalError: the node calls no operator.
    """
    if not callable(node.target):
        raise InternalError(f"{node.op} {node.target} is not functional ATen")
    args, kwargs = fx.map_arg(node.args, lookup), fx.map_arg(node.kwargs, lookup)
    if raised:
        args, kwargs = raised_arguments(args, kwargs)
        if is_streamed(node, args):
            return streamed_call(node, args)
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
