"""Ask an input for a size that an input has, and compute every other size once.

    sym_size(hidden, 1)                     ->  sym_size(ids, 1)        the same free dimension
    (sym_size(ids, 1) * 8) // 8             ->  sym_size(ids, 1)
    n + 11, again n + 11                    ->  the first one

Export asks whatever tensor is at hand for its sizes, so that a reshape waits for a value that it does not read, and
computes with them what simplifies away. Sizes are compared as the expressions of free dimensions that the capture
recorded, with what it knows of their ranges.

Numerical effect: BITWISE. Sizes are whole numbers, and equal.

Refuses when: never. A site is a size that the same size could stand for.

Attributes of the matched operators:
    sym_size: the axis is used. Arithmetic with sizes: its recorded result is used.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_sym_size = torch.ops.aten.sym_size.int


@dataclass(frozen=True, slots=True)
class InputSize:
    """The size of an input along an axis."""

    source: fx.Node
    axis: int


class SimplifyShapes(RewritePass[InputSize | fx.Node]):
    """Ask an input for a size that an input has, and compute every other size once."""

    exactness: ClassVar[Exactness] = Exactness.BITWISE

    def sites(self, program: Program) -> list[fx.Node]:
        """Sizes that an input has, asked elsewhere, and sizes that an earlier node has."""
        inputs = _input_sizes(program.graph)
        first: dict[Any, fx.Node] = {}
        found = []
        for node in _sizes(program.graph):
            known = inputs.get(_expression(node))
            is_first = first.setdefault(_expression(node), node) is node
            if not is_first or (known is not None and not _asks(node, known)):
                found.append(node)
        return found

    def check(self, site: Site) -> InputSize | fx.Node:
        graph, expression = site.program.graph, _expression(site.node)
        wanted = _input_sizes(graph).get(expression)
        for node in itertools.takewhile(lambda n: n is not site.node, _sizes(graph)):
            if _expression(node) == expression and (wanted is None or _asks(node, wanted)):
                return node
        assert wanted is not None  # or else an earlier node has the size
        return wanted

    def rewrite(self, edit: Edit, plan: InputSize | fx.Node) -> str:
        new = plan if isinstance(plan, fx.Node) else edit.call(_sym_size, plan.source, plan.axis)
        edit.replace(edit.anchor, new)
        what = f"{new.name}" if isinstance(plan, fx.Node) else f"axis {plan.axis} of {plan.source.name}"
        return f"{edit.anchor.meta['val']} is {what}"


def _sizes(graph: fx.Graph) -> Iterator[fx.Node]:
    """Nodes that give a size which is not known at capture."""
    return (n for n in graph.nodes if n.op == "call_function" and isinstance(n.meta.get("val"), torch.SymInt))


def _expression(node: fx.Node) -> Any:
    return node.meta["val"].node.expr


def _input_sizes(graph: fx.Graph) -> dict[Any, InputSize]:
    """Expression of a size to the first input that has it."""
    found: dict[Any, InputSize] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = recorded_tensor(node)
        for axis, size in enumerate(() if value is None else value.shape):
            if isinstance(size, torch.SymInt):
                found.setdefault(size.node.expr, InputSize(node, axis))
    return found


def _asks(node: fx.Node, wanted: InputSize) -> bool:
    return node.target is _sym_size and node.args == (wanted.source, wanted.axis)
