"""Products: together they are what ``flops`` counts for them."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.concrete_shapes import ConcreteShapes
from flowopt.analysis.flops import is_product, node_flops
from flowopt.analysis.products import Product, Shaped, products
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.models import ZOO


@cache
def zoo(name: str) -> Program:
    model = ZOO[name]()
    return capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


class Twice(nn.Module):
    """Three layers, two of which have the same sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.second(self.first(x)))
        return result


def twice(rows: int) -> dict[int, Product]:
    made: dict[str, Any] = {"dynamic": {"x": {0: "rows"}}, "dims": {"rows": (1, 64)}}
    program = capture(Twice().eval(), (torch.ones(3, 4),), **made)
    found = products(program, {"rows": rows})
    assert len(found) == 2
    return {product.count: product for product in found}


def test_equal_calls_are_counted_together() -> None:
    found = twice(5)
    assert found[2].arguments == (Shaped((5, 4), "float32"), Shaped((4, 4), "float32"), Shaped((4,), "float32"))
    assert (found[2].operator, found[2].flop) == ("aten.linear.default", 2 * 5 * 4 * 4)
    assert found[1].flop == 2 * 5 * 4 * 6


def test_bytes_are_those_of_operands_and_result() -> None:
    found = twice(5)
    assert found[2].moved_bytes == 4 * (5 * 4 + 4 * 4 + 4 + 5 * 4)
    assert found[1].moved_bytes == 4 * (5 * 4 + 4 * 6 + 5 * 6)


@pytest.mark.parametrize("name", ["minilm", "digits-vit"])
def test_they_sum_to_the_operations_of_the_program_s_products(name: str) -> None:
    program = zoo(name)
    sizes = {dim.name: dim.minimum + 3 for dim in program.dims}
    shapes = ConcreteShapes(program, sizes)
    expected = sum(node_flops(node, shapes) or 0 for node in program.graph.nodes if is_product(node))
    found = products(program, sizes)
    assert sum(p.flop * p.count for p in found) == expected > 0
    assert len(found) < sum(p.count for p in found)
