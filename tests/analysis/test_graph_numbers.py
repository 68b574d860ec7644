from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowopt.analysis.graph_numbers import GraphNumbers, graph_numbers
from flowopt.program.capture import capture


class Holding(nn.Module):
    edges: Tensor
    table: Tensor

    def __init__(self, body: Callable[["Holding", Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("edges", torch.tensor([0.25, 3.0, float("inf")]))
        self.register_buffer("table", torch.arange(100.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def numbers(body: Callable[[Holding, Tensor], Tensor], x: Tensor) -> GraphNumbers:
    program = capture(Holding(body).eval(), (x,))
    return graph_numbers(program.graph, program.tensors)


def test_bounds_and_factors_of_floats() -> None:
    found = numbers(lambda m, x: (x * 16).clamp(-128, 127) / 0.5 + (x > 1.75), torch.randn(2, 3))
    assert {16.0, -128.0, 127.0, 0.5, 1.75} <= set(found.floats)
    assert found.integers == ()


def test_ids_that_are_compared() -> None:
    found = numbers(lambda m, x: (x != 1437) & (x % 60 == 0), torch.randint(0, 9, (2, 3)))
    assert found == GraphNumbers((), (60, 1437))


def test_bounds_that_are_stored() -> None:
    assert numbers(lambda m, x: torch.bucketize(x, m.edges), torch.randn(4)).floats == (0.25, 3.0)
    assert numbers(lambda m, x: torch.bucketize(x, m.edges[:2] + 1), torch.randn(4)).floats[-2:] == (1.25, 4.0)


def test_axes_sizes_and_large_tables_are_none() -> None:
    found = numbers(lambda m, x: x.reshape(3, 2).sum(1).softmax(0) @ m.table[:3], torch.randn(2, 3))
    assert found == GraphNumbers((), ())


def test_what_sizes_are_divided_by() -> None:
    program = capture(
        Holding(lambda m, x: x.sum(0) / ((x.shape[0] + 11) // 12)).eval(),
        (torch.randn(8, 3),),
        dynamic={"x": {0: "rows"}},
        dims={"rows": (1, 30)},
    )
    assert {11, 12} <= set(graph_numbers(program.graph, program.tensors).sizes)


def test_they_add_up_and_are_told_apart() -> None:
    one, other = GraphNumbers((0.5,), (3,), (12,)), GraphNumbers((0.5, 0.25), (), (7, 12))
    assert one | other == GraphNumbers((0.25, 0.5), (3,), (7, 12))
    assert other - one == GraphNumbers((0.25,), (), (7,))
    assert not (one - one) and (other - one)
