from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx

from flowopt.errors import InternalError
from flowopt.rewrite.transfer import transfer
from tests.rewrite.passes import chain

Named = namedtuple("Named", ["node", "axis"])  # untyped on purpose


@dataclass(frozen=True, slots=True)
class Deep:
    node: fx.Node
    rest: Any
    axis: int = 1


def test_every_node_is_replaced_by_its_namesake() -> None:
    program, twin = chain(), chain().copy()
    nodes = {n.name: n for n in twin.graph.nodes}
    relu, linear = program.node("relu"), program.node("linear")
    plan = Deep(relu, ((linear, 3), [relu], {"key": linear, relu: "value"}, Named(linear, -1), None, "text"))
    moved = transfer(plan, nodes)
    assert moved == Deep(
        nodes["relu"],
        (
            (nodes["linear"], 3),
            [nodes["relu"]],
            {"key": nodes["linear"], nodes["relu"]: "value"},
            Named(nodes["linear"], -1),
            None,
            "text",
        ),
    )
    assert isinstance(moved.rest[3], Named)


def test_an_operator_in_a_plan_stays() -> None:
    assert transfer(torch.ops.aten.relu.default, {}) is torch.ops.aten.relu.default
    assert transfer(Deep, {}) is Deep


@pytest.mark.parametrize("plan", [torch.ones(2), (torch.ones(2),), {"weight": torch.ones(2)}])
def test_refuses_tensors(plan: Any) -> None:
    with pytest.raises(InternalError, match="a plan holds a tensor"):
        transfer(plan, {})


def test_refuses_a_node_that_the_copy_lacks() -> None:
    with pytest.raises(InternalError, match="no node 'relu'"):
        transfer(chain().node("relu"), {})
