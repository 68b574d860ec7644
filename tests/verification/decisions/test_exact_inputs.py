"""A decision that reads an input as it comes excuses nothing, and no decision excuses a third value."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.models import randomise

EDGE = 0.1875


class Deciding(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


def program(body: Callable[[Tensor], Tensor]) -> Program:
    module = Deciding(body)
    randomise(module, seed=1)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    return capture(module.eval(), (x,), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 8)})


def direct(x: Tensor) -> Tensor:
    return torch.where(x.reshape(-1, 4) >= EDGE, x, -x)


def computed(x: Tensor) -> Tensor:
    return torch.where(x * 3.3 >= EDGE * 3.3, x, -x)


def verdict(reference: Callable[[Tensor], Tensor], candidate: Callable[[Tensor], Tensor]) -> flowopt.Verdict:
    return flowopt.verify(program(reference), program(candidate), inputs={"x": torch.full((2, 4), EDGE)})


def test_the_edge_itself_is_decided_where_the_input_is_read_as_it_comes() -> None:
    assert not verdict(direct, lambda x: torch.where(x > EDGE, x, -x))


def test_a_computed_value_on_the_edge_may_fall_either_way() -> None:
    assert verdict(computed, lambda x: torch.where(3.3 * x > EDGE * 3.3, x, -x))


@pytest.mark.parametrize("reference", [direct, computed])
@pytest.mark.parametrize("third", [1000.0, float("nan")])
def test_a_third_value_at_the_edge_is_found(reference: Callable[[Tensor], Tensor], third: float) -> None:
    found = verdict(reference, lambda x: reference(x) + torch.where((x - EDGE).abs() < 1e-6, third, 0.0))
    assert found.outcome is flowopt.Outcome.DIFFERENT
