"""What an input means, told from the graph alone, as it has to be for archives, and from an example."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.analysis.input_roles import Kind, Role, input_role

IDS = torch.tensor([[1, 0, 1]])


class Reads(nn.Module):
    """A model of one integer input ``x``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.table = nn.Embedding(9, 4)
        self.register_buffer("rows", torch.randn(7, 4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def role(function: Callable[..., Tensor], *, example: Tensor | None = None, x: Tensor = IDS) -> Role:
    program = flowopt.capture(Reads(function).eval(), (x,), dynamic={"x": {1: "length"}})
    return input_role(program.node("x"), example)


MASKS: dict[str, Callable[..., Tensor]] = {
    "cast to bool": lambda m, x: torch.where(x.to(torch.bool), 1.0, -9.0),
    "after a view": lambda m, x: torch.where(x[:, None, None, :].to(torch.bool), 1.0, -9.0),
    "compared with zero": lambda m, x: (x + 0.5).masked_fill(x == 0, -9.0),
    "not zero": lambda m, x: (x != 0).float() * 2,
    "one minus it, in floats": lambda m, x: (1.0 - x[:, None, None, :].to(torch.float32)) * -10000.0,
}


@pytest.mark.parametrize("how", MASKS)
def test_an_integer_that_is_asked_whether_it_is_zero_is_a_mask(how: str) -> None:
    assert role(MASKS[how]).kind is Kind.MASK


def test_a_boolean_is_a_mask_even_where_it_indexes() -> None:
    assert role(lambda m, x: x.float()[x], x=IDS.bool()).kind is Kind.MASK


def test_an_index_stays_inside_the_table_that_it_reads() -> None:
    assert role(lambda m, x: m.table(x)) == Role(Kind.INDICES, 0, 9)
    assert role(lambda m, x: m.rows[x]) == Role(Kind.INDICES, 0, 7)
    assert role(lambda m, x: m.rows[x.reshape(-1)] + m.table(x).sum()) == Role(Kind.INDICES, 0, 7)
    assert role(lambda m, x: torch.index_select(m.rows, 1, x[0])) == Role(Kind.INDICES, 0, 4)


@pytest.mark.parametrize("index", [0, 5])
def test_the_embedding_tells_the_id_of_padding(index: int) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4, padding_idx=index)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.table(x.reshape(-1))
            return made

    program = flowopt.capture(Padded().eval(), (IDS,))
    assert input_role(program.node("x"), IDS) == Role(Kind.INDICES, 0, 9, padding=index)


def test_an_index_into_something_of_free_size_is_zero() -> None:
    assert role(lambda m, x: torch.gather(x.cumsum(1), 1, x)) == Role(Kind.INDICES, 0, 1)


def test_an_example_says_more_than_a_table_that_is_no_embedding() -> None:
    example = torch.tensor([[0, 2, 1]])
    assert role(lambda m, x: m.rows[x], example=example) == Role(Kind.INTEGERS, 0, 3, is_index=True)
    assert role(lambda m, x: x * 2, example=example) == Role(Kind.INTEGERS, 0, 3)
    assert role(lambda m, x: m.table(x), example=example) == Role(Kind.INDICES, 0, 9)


def test_other_integers_are_zeros_and_ones() -> None:
    assert role(lambda m, x: x * 2.5) == Role(Kind.INTEGERS, 0, 2)
