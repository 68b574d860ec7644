from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import Edit
from flowopt.verification.sites.pattern import pattern_of
from flowopt.verification.sites.region import Regions
from tests.verification.substitute import aten, captured, judged, substitute
from tests.zoo.models import randomise


class Chain(nn.Module):
    """Linear layers of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in ((8, 12), (12, 5), (5, 8)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def patterns(program: Program, target: Any, build: Callable[[Program, fx.Node], fx.Node]) -> list[str]:
    """Of the claim that what ``build`` makes equals the node, for every node of a target."""
    regions = Regions(program)
    found = []
    for node in program.graph.find_nodes(op="call_function", target=target):
        changed = program.copy()
        with changed.graph.inserting_before(changed.graph.output_node()):
            new = build(changed, changed.node(node.name))
        found.append(pattern_of(regions.of(node.name, new), new))
    return found


def again(factor: float) -> Callable[[Program, fx.Node], fx.Node]:
    def build(program: Program, node: fx.Node) -> fx.Node:
        made = program.graph.call_function(aten.linear.default, node.args)
        return program.graph.call_function(aten.mul.Tensor, (made, factor))

    return build


def chain() -> Program:
    module = Chain()
    randomise(module, seed=0)
    return capture(module.eval(), (torch.zeros(2, 8),))


def test_weights_and_shapes_make_no_difference() -> None:
    assert len(set(patterns(chain(), aten.linear.default, again(1.0)))) == 1


def test_numbers_of_the_new_side_do() -> None:
    program = chain()
    assert patterns(program, aten.linear.default, again(1.0)) != patterns(program, aten.linear.default, again(2.0))


def test_numbers_of_the_old_side_do() -> None:
    program = captured(lambda x: torch.softmax(x, 1) + torch.softmax(x, 2))
    found = patterns(program, aten.softmax.int, lambda p, n: p.graph.call_function(aten.softmax.int, (n.args[0], 2)))
    assert len(set(found)) == 2


def test_what_reads_what_does() -> None:
    program = captured(lambda x: torch.relu(x).sub(x))

    def turned(program: Program, node: fx.Node) -> fx.Node:
        return program.graph.call_function(aten.sub.Tensor, tuple(reversed(node.args)))

    def same(program: Program, node: fx.Node) -> fx.Node:
        return program.graph.call_function(aten.sub.Tensor, node.args)

    assert patterns(program, aten.sub.Tensor, turned) != patterns(program, aten.sub.Tensor, same)


def two_hidden(x: Tensor) -> Tensor:
    """Both sines lie where nothing outside shows them."""
    first = torch.relu(-torch.relu(torch.sin(x)))
    return torch.relu(-torch.relu(torch.sin(x + first)))


def test_a_wrong_second_site_of_the_same_pattern_is_still_caught() -> None:
    def build(edit: Edit, node: fx.Node) -> fx.Node:
        shift = 0.0 if node.name == "sin" else 1e-3
        return edit.call(aten.add.Tensor, edit.call(aten.sin.default, node.args[0]), shift)

    def stored(edit: Edit, node: fx.Node) -> fx.Node:
        bias = next(iter(node.graph.find_nodes(op="get_attr", target="first.bias")))
        value = torch.full((8,), 0.0 if node.name == "sin" else 1e-3, dtype=torch.float64)
        shift = edit.parameter("shift", value, like=bias)
        return edit.call(aten.add.Tensor, edit.call(aten.sin.default, node.args[0]), shift)

    for made in (build, stored):
        record = judged(captured(two_hidden), substitute(aten.sin.default, made))
        assert record.outcome == "reverted"
        assert record.verdict is not None
        assert {f.where for f in record.verdict.findings} == {"sin_1"}
