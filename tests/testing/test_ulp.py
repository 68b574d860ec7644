"""The distance in units in the last place, against what nextafter says."""

import math

import pytest
import torch
from torch import Tensor

from flowopt.testing.ulp import largest_ulp


def above(value: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        value = torch.nextafter(value, torch.full_like(value, math.inf))
    return value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1.0, 1.5, -1.75, 0.375, 100.0])
def test_steps_to_a_neighbour_are_counted_one_by_one(dtype: torch.dtype, number: float) -> None:
    value = torch.tensor([number], dtype=dtype)
    neighbour = above(value, 3) if dtype in (torch.float32, torch.float64) else value + 3 * ulp_of(number, dtype)
    assert largest_ulp(value, neighbour) == 3.0


def ulp_of(number: float, dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(abs(number)))


def test_equal_tensors_are_zero_apart() -> None:
    value = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert largest_ulp(value, value.clone()) == 0.0


def test_an_element_counts_in_places_of_its_row_s_largest() -> None:
    value = torch.tensor([1024.0, 1.0])
    assert largest_ulp(value, value + torch.tensor([0.0, 2.0**-13])) == 1.0


def test_the_larger_side_sets_the_place() -> None:
    larger, smaller = torch.tensor([2.0]), torch.tensor([2.0 - 2.0**-23])
    assert largest_ulp(larger, smaller) == largest_ulp(smaller, larger) == 0.5


def test_another_row_s_size_does_not_count() -> None:
    value = torch.tensor([[1024.0], [1.0]])
    assert largest_ulp(value, value + torch.tensor([[0.0], [2.0**-23]])) == 1.0


def test_a_number_without_rows_counts_in_its_own_places() -> None:
    assert largest_ulp(torch.tensor(1.0), torch.tensor(1.0 + 2.0**-22)) == 2.0


def test_subnormal_numbers_have_the_smallest_place() -> None:
    assert largest_ulp(torch.tensor([0.0]), torch.tensor([2.0**-149])) == 1.0


def test_signed_zeros_are_zero_apart() -> None:
    assert largest_ulp(torch.tensor([0.0]), torch.tensor([-0.0])) == 0.0


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_a_special_value_on_both_sides_is_no_distance_and_on_one_side_an_infinite_one(special: float) -> None:
    value = torch.tensor([special, 1.0])
    assert largest_ulp(value, value.clone()) == 0.0
    assert largest_ulp(value, torch.tensor([1.0, 1.0])) == math.inf
    assert largest_ulp(torch.tensor([1.0, 1.0]), value) == math.inf


def test_a_complex_number_is_two_reals() -> None:
    value = torch.tensor([1.0 + 1.0j])
    assert largest_ulp(value, value + 2.0**-23 * 1j) == 1.0


def test_integers_and_empty_tensors_have_no_distance() -> None:
    assert largest_ulp(torch.tensor([1]), torch.tensor([2])) == 0.0
    assert largest_ulp(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0
