"""What every node of a graph is computed from."""

from collections.abc import Iterable, Iterator
from typing import final

from torch import fx


@final
class Ancestors:
    """Sets of nodes as bits, a node's own at its place in the graph, so that one operation compares whole sets.

    A question about the region between two values is then answered without walking through it: regions of the sites of
    one pass overlap, and walks through all of them add up to the square of the graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._nodes: list[fx.Node] = list(graph.nodes)
        self._bits = {node: 1 << place for place, node in enumerate(self._nodes)}
        self._before: dict[fx.Node, int] = {}
        for node in self._nodes:
            found = 0
            for source in node.all_input_nodes:
                found |= self._bits[source] | self._before[source]
            self._before[node] = found

    def of(self, node: fx.Node) -> int:
        """All nodes from which a node is computed, itself not among them."""
        return self._before[node]

    def with_own(self, node: fx.Node) -> int:
        """A node and all from which it is computed."""
        return self._bits[node] | self._before[node]

    def of_any(self, nodes: Iterable[fx.Node]) -> int:
        """All nodes from which one of some nodes is computed."""
        found = 0
        for node in nodes:
            found |= self._before[node]
        return found

    def bits(self, nodes: Iterable[fx.Node]) -> int:
        """The set of some nodes."""
        found = 0
        for node in nodes:
            found |= self._bits[node]
        return found

    def bit(self, node: fx.Node) -> int:
        """The set of one node."""
        return self._bits[node]

    def last_first(self, bits: int) -> Iterator[fx.Node]:
        """The nodes of a set, from the last in the graph to the first."""
        while bits:
            place = bits.bit_length() - 1
            yield self._nodes[place]
            bits ^= 1 << place
