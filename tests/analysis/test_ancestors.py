import torch
from torch import fx

from flowopt.analysis.ancestors import Ancestors

aten = torch.ops.aten


def test_ancestors_are_all_that_a_node_is_computed_from() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    sine = graph.call_function(aten.sin.default, (x,))
    total = graph.call_function(aten.add.Tensor, (sine, y))
    beside = graph.call_function(aten.cos.default, (y,))
    graph.output((total, beside))
    ancestors = Ancestors(graph)
    assert list(ancestors.last_first(ancestors.of(total))) == [sine, y, x]
    assert list(ancestors.last_first(ancestors.with_own(beside))) == [beside, y]
    assert ancestors.of_any([sine, beside]) == ancestors.bits([x, y])
    assert ancestors.of(x) == 0 and ancestors.bit(x) == ancestors.bits([x])
