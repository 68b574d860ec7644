import math

import pytest
import torch

from flowopt.verification.ensemble import COPIES, copies_for, moved_by_one_ulp

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NEXT = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def values(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(100, 100, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moves_exactly_one_ulp_or_not_at_all(dtype: torch.dtype) -> None:
    before = values(dtype)
    steps = moved_by_one_ulp("w", before, 0, 0).view(NEXT[dtype]).long() - before.view(NEXT[dtype]).long()
    assert set(steps.unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_is_the_neighbouring_number(dtype: torch.dtype) -> None:
    before = values(dtype)
    moved = moved_by_one_ulp("w", before, 0, 0)
    up = torch.nextafter(before, torch.full_like(before, math.inf))
    down = torch.nextafter(before, torch.full_like(before, -math.inf))
    assert bool(((moved == before) | (moved == up) | (moved == down)).all())


def test_a_quarter_goes_down_half_stays_and_a_quarter_goes_up() -> None:
    before = values(torch.float32)
    moved = moved_by_one_ulp("w", before, 0, 0)
    shares = [
        float(c.float().mean()) for c in (moved.abs() < before.abs(), moved == before, moved.abs() > before.abs())
    ]
    # 10,000 draws: three standard deviations are 0.015.
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_one_of_the_first_three_copies_moves_any_element() -> None:
    before = values(torch.float32)
    stays = [moved_by_one_ulp("w", before, copy, 0) == before for copy in range(COPIES)]
    assert not bool(torch.stack(stays).all(0).any())


def test_name_copy_and_seed_decide_and_nothing_else_does() -> None:
    before = values(torch.float32)
    first = moved_by_one_ulp("w", before, 0, 0)
    torch.manual_seed(99)
    assert torch.equal(moved_by_one_ulp("w", before.clone(), 0, 0), first)
    for name, copy, seed in (("v", 0, 0), ("w", 1, 0), ("w", 0, 1)):
        assert not torch.equal(moved_by_one_ulp(name, before, copy, seed), first)


def test_does_not_touch_the_random_state_of_the_caller() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    moved_by_one_ulp("w", values(torch.float32), 0, 0)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_infinities_nan_and_the_largest_number_stay(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, largest, -largest] * 50, dtype=dtype)
    moved = moved_by_one_ulp("w", special, 0, 0)
    assert torch.equal(moved.view(NEXT[dtype]), special.view(NEXT[dtype]))


def test_integers_and_booleans_stay() -> None:
    for tensor in (torch.arange(100), torch.ones(100, dtype=torch.bool)):
        assert moved_by_one_ulp("w", tensor, 0, 0) is tensor


def test_scalars_and_strided_tensors_move_too() -> None:
    before = values(torch.float32).t()
    moved = moved_by_one_ulp("w", before, 0, 0)
    assert moved.shape == before.shape and not torch.equal(moved, before)
    assert any(float(moved_by_one_ulp(f"{i}", torch.tensor(1.5), 0, 0)) != 1.5 for i in range(10))


def test_the_tensor_itself_is_not_written() -> None:
    before = values(torch.float32)
    kept = before.clone()
    moved_by_one_ulp("w", before, 0, 0)
    assert torch.equal(before, kept)


@pytest.mark.parametrize(
    ("shape", "copies"),
    [
        ((5, 64), COPIES),
        ((5, 4), COPIES),
        ((5, 1), 15),
        ((5, 7, 2), 7),
        ((), 15),
        ((2, 3, 1, 1), COPIES),
        ((5, 0), COPIES),
    ],
)
def test_short_rows_get_more_copies(shape: tuple[int, ...], copies: int) -> None:
    assert copies_for(torch.zeros(shape)) == copies


def test_at_a_site_a_value_of_few_elements_gets_more_copies() -> None:
    assert copies_for(torch.zeros(2, 3, 1, 1), at_site=True) == 10
    assert copies_for(torch.zeros(5, 64), at_site=True) == COPIES
