"""In which order the nodes of a graph are computed where other modules take the places of some, and until when."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a walk, and the values that nobody reads after it."""

    node: fx.Node
    dying: tuple[fx.Node, ...]


def walk_of(
    graph: fx.Graph, observed: Iterable[fx.Node], inputs_of: Callable[[fx.Node], list[fx.Node]]
) -> tuple[Step, ...]:
    """All that the outputs and the observed nodes need.

    Args:
        graph: with one output node.
        observed: nodes beside the outputs.
        inputs_of: what a node reads, which need not be what the graph says.
    """
    output = graph.output_node()
    pending = [*output.all_input_nodes, *observed]
    needed = set(pending)
    while pending:
        for source in inputs_of(pending.pop()):
            if source not in needed:
                needed.add(source)
                pending.append(source)
    order = [node for node in graph.nodes if node in needed]
    last: dict[fx.Node, fx.Node] = {}
    for node in order:
        last |= dict.fromkeys(inputs_of(node), node)
        last.setdefault(node, node)
    returned = set(output.all_input_nodes)
    dying: dict[fx.Node, list[fx.Node]] = {}
    for node, reader in last.items():
        if node not in returned:
            dying.setdefault(reader, []).append(node)
    return tuple(Step(node, tuple(dying.get(node, ()))) for node in order)
