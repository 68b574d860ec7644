"""Which values of a network depend on the time alone, and where to cut them off.

A sampler knows all its times beforehand. What depends on them alone (embeddings of the time, modulations) is computed
once per step when the sampler is folded, and its readers read a table; the weights that made it leave the program.
"""

from collections.abc import Iterable

import torch
from torch import fx

from flowopt.analysis.binding_times import binding_times
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program

_aten = torch.ops.aten
# Their result is larger than what it is made of: the cut goes before them.
_SPREADING = {_aten.expand.default, _aten.repeat.default, _aten.repeat_interleave.self_int, _aten.full_like.default}


def cut_at_times(
    program: Program, times: Iterable[str], steps: int, *, refused: Iterable[fx.Node] = ()
) -> list[fx.Node]:
    """The nodes to replace by tables: they depend on the times alone, and something that depends on more reads them.

    Among all cuts that a search by subtrees meets, the one with the fewest bytes of tables and of weights that are
    still needed: a table pays where it has fewer rows than the layer that makes it has inputs.

    Args:
        program: the network.
        times: names of its time inputs.
        steps: how many rows each table has.
        refused: nodes that cannot be read from a table; the cut goes before them.
    """
    labels = binding_times(program.graph)
    names = frozenset(times)
    timed = {n for n, label in labels.items() if label and label <= names and n.op != "placeholder"}
    search = _Search(program, steps)
    chosen = search.legal(timed - search.readers(refused))
    best = search.cost(chosen)
    improved = True
    while improved:
        improved = False
        candidates = (search.legal(chosen - search.readers([node])) for node in _forks(chosen))
        for candidate in sorted(candidates, key=len, reverse=True):
            cost = search.cost(candidate)
            if cost < best:
                chosen, best, improved = candidate, cost, True
                break
    return search.boundary(chosen)


def _forks(chosen: set[fx.Node]) -> list[fx.Node]:
    """Where cutting earlier can be smaller: values that several others are made of."""
    return [n for n in chosen if len([u for u in n.users if u in chosen]) > 1 or n.target in _SPREADING]


class _Search:
    """The bytes of a cut, and which cuts are possible."""

    def __init__(self, program: Program, steps: int) -> None:
        self._order = list(program.graph.nodes)
        self._tensors = program.tensors
        self._steps = steps

    def readers(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The nodes and everything that is computed of them."""
        found: set[fx.Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                pending.extend(node.users)
        return found

    def legal(self, chosen: set[fx.Node]) -> set[fx.Node]:
        """Without values that no table can hold (tuples, sizes) or should (copies of a smaller one) at the cut."""
        chosen = set(chosen)
        changed = True
        while changed:
            bad = [n for n in self.boundary(chosen) if recorded_tensor(n) is None or n.target in _SPREADING]
            chosen.difference_update(self.readers(bad))
            changed = bool(bad)
        return chosen

    def boundary(self, chosen: set[fx.Node]) -> list[fx.Node]:
        """What of the chosen nodes the others read, in the graph's order."""
        return [n for n in self._order if n in chosen and any(user not in chosen for user in n.users)]

    def cost(self, chosen: set[fx.Node]) -> int:
        """Bytes of the tables, and of the stored tensors that the rest still reads."""
        tables = sum(self._steps * _row_bytes(n) for n in self.boundary(chosen))
        # A weight may be read through a transpose or a cast, which depends on no time.
        needed: set[fx.Node] = set()
        for node in reversed(self._order):
            if node not in chosen and (node.op == "output" or any(user in needed for user in node.users)):
                needed.add(node)
        stored = {str(n.target) for n in needed if n.op == "get_attr"}
        return tables + sum(t.numel() * t.element_size() for t in (self._tensors[name] for name in stored))


def _row_bytes(node: fx.Node) -> int:
    """Bytes of one sample's part: sizes that are free count as one."""
    value = recorded_tensor(node)
    assert value is not None, "a legal cut is made of tensors"
    count = 1
    for size in value.shape:
        count *= size if isinstance(size, int) else 1
    return count * value.element_size()
