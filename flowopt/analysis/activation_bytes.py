"""Memory that the values of one run take."""

from collections.abc import Mapping
from math import prod

import torch
from torch import fx

from flowopt.analysis.concrete_shapes import ConcreteShapes, Shape, SizedProgram, is_view, recorded_tensors
from flowopt.ir.float64 import RAISED_DTYPE

_aten = torch.ops.aten
# They give a view where nothing has to change, which shapes do not tell: taken for copies. A reshape is taken for a
# view, because captured graphs have a clone before one that copies.
_MAY_COPY = {_aten.contiguous.default, _aten.to.dtype, _aten.type_as.default}


def activation_bytes(program: SizedProgram, sizes: Mapping[str, int], *, raised: bool = False) -> int:
    """The most bytes that live at once when the graph is evaluated node by node and values go after their last reader.

    Inputs live throughout, and a view keeps what it is a view of. Values whose sizes depend on data count as nothing.
    Stored tensors count while an operator reads them raised. Attention counts its scores where torch has no fused
    kernel for it. Work space of other operators is not known.

    Args:
        program: whose graph is measured.
        sizes: every free dimension by name.
        raised: floating tensors are float64, as in the oracle.
    """
    measure = _Measure(program, sizes, raised)
    owners = _owners(program.graph)
    dying = _last_reads(program.graph, owners)
    live = most = 0
    for node in program.graph.nodes:
        if node.op == "output":
            break
        if node.op == "get_attr":
            continue
        live += measure.own(node) if owners[node] is node else 0
        most = max(most, live + measure.extra(node))
        live -= sum(measure.own(dead) for dead in dying.get(node, ()))
    return most


class _Measure:
    def __init__(self, program: SizedProgram, sizes: Mapping[str, int], raised: bool) -> None:
        self._shapes, self._raised = ConcreteShapes(program, sizes), raised

    def own(self, node: fx.Node) -> int:
        """Bytes of the value of a node."""
        return sum(
            prod(self._shapes.shape(tensor) or (0,)) * self._itemsize(tensor.dtype) for tensor in recorded_tensors(node)
        )

    def extra(self, node: fx.Node) -> int:
        """Bytes that exist only while the node is computed."""
        read = [source for source in node.all_input_nodes if source.op == "get_attr"]
        extra = sum(map(self.own, read)) if self._raised else 0
        if node.target is _aten.scaled_dot_product_attention.default:
            extra += self._scores(*(self._shapes.of(argument) for argument in node.args[:3]))
        return extra

    def _scores(self, query: Shape | None, key: Shape | None, value: Shape | None) -> int:
        if query is None or key is None or value is None or (len(query) == 4 and query[-1] == value[-1]):
            return 0  # torch's fused kernel, which never holds all scores
        # The scores and their softmax.
        return 2 * prod(query[:-1]) * key[-2] * (8 if self._raised else 4)

    def _itemsize(self, dtype: torch.dtype) -> int:
        return (RAISED_DTYPE.get(dtype, dtype) if self._raised else dtype).itemsize


def _owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For every node the node in whose memory its value lies: itself, unless it is a view."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        shares = is_view(node) and node.target not in _MAY_COPY and isinstance(first, fx.Node)
        owners[node] = owners[first] if shares and isinstance(first, fx.Node) else node
    return owners


def _last_reads(graph: fx.Graph, owners: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the memory that nobody reads after it; inputs and stored tensors are never among it."""
    dying: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for source in (node, *node.all_input_nodes):
            owner = owners[source]
            if owner not in seen and owner.op == "call_function" and node.op != "output":
                dying.setdefault(node, []).append(owner)
            seen.add(owner)
    return dying
