"""Which integers each pattern takes from a range."""

import pytest
import torch
from torch import Tensor

from flowopt.analysis.input_roles import Kind, Role
from flowopt.verification.inputs.integers import IntegerPattern, integers

ROLE = Role(Kind.INDICES, 2, 9)


def made(pattern: IntegerPattern, *shape: int, role: Role = ROLE) -> Tensor:
    return integers(pattern, role, shape, torch.Generator().manual_seed(0))


def test_the_lowest_and_the_highest() -> None:
    assert made("lowest", 3, 4).unique().tolist() == [2]
    assert made("highest", 3, 4).unique().tolist() == [8]


def test_edges_alternate() -> None:
    assert made("edges", 2, 3).tolist() == [[2, 8, 2], [8, 2, 8]]


def test_random_ones_reach_every_value() -> None:
    assert made("random", 20, 10).unique().tolist() == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("declared", "padding"), [(None, 2), (5, 5)])
def test_padding_ends_the_rows(declared: int | None, padding: int) -> None:
    rows = made("padded", 4, 6, role=Role(Kind.INDICES, 2, 9, padding=declared))
    for index, row in enumerate(rows):
        assert row[index:].unique().tolist() == [padding]
    assert len(rows[3][:3].unique()) > 1


@pytest.mark.parametrize("pattern", ["random", "lowest", "highest", "edges", "padded"])
def test_any_shape_and_a_range_of_one(pattern: IntegerPattern) -> None:
    for shape in ((), (0,), (1, 1), (2, 0)):
        found = made(pattern, *shape, role=Role(Kind.INDICES, 0, 1))
        assert tuple(found.shape) == shape and found.dtype is torch.int64
        assert not bool(found.any())
