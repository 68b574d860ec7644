"""Figures of known values, at the ends of every format."""

import math

import pytest
import torch
from torch import Tensor

from flowopt.report.verdict import Metrics
from flowopt.verification.metrics import measured


def of(value: Tensor, oracle: Tensor, scope: Tensor | None = None) -> Metrics:
    found = measured(value, oracle.double(), torch.ones(value.shape, dtype=torch.bool) if scope is None else scope)
    assert found is not None
    return found


def test_known_values() -> None:
    found = of(torch.tensor([1.0, 2.0, 2.0, 0.5]), torch.tensor([1.0, 2.0, 2.0, 0.0]))
    assert found.max_error == found.p99_error == 0.5
    assert found.rms_error == pytest.approx(0.25)
    assert found.snr_db == pytest.approx(10 * math.log10(9 / 0.25))
    assert found.cosine == pytest.approx(9 / math.sqrt(9 * 9.25))


def test_no_error_is_an_infinite_ratio_and_a_cosine_of_one() -> None:
    value = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    found = of(value, value)
    assert (found.max_error, found.p99_error, found.rms_error, found.max_ulp, found.snr_db) == (0, 0, 0, 0, math.inf)
    assert found.cosine == pytest.approx(1.0)


def test_a_factor_that_the_cosine_does_not_see_shows_in_the_others() -> None:
    found = of(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert found.cosine == pytest.approx(1.0) and found.snr_db == pytest.approx(0.0) and found.max_error == 2.0


def test_only_what_is_in_scope_counts() -> None:
    value, oracle = torch.tensor([1.0, math.nan, 3.0, 9.0]), torch.tensor([1.0, 2.0, math.inf, 8.0])
    found = of(value, oracle, torch.tensor([True, False, False, True]))
    assert found.max_error == 1.0 and found.rms_error == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("shape", [(0, 4), (3,)])
def test_nothing_in_scope_gives_no_figures(shape: tuple[int, ...]) -> None:
    nothing = torch.full(shape, math.nan)
    assert measured(nothing, nothing.double(), torch.zeros(shape, dtype=torch.bool)) is None


class TestUlp:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_neighbours_are_one_apart(self, dtype: torch.dtype) -> None:
        limits = torch.finfo(dtype)
        lowest = limits.smallest_normal
        # Above a power of two, within a subnormal's reach, and next to the largest number.
        for at in (1.0, 1.5, 2.0, 0.125, lowest, lowest / 4, limits.max / 2, -3.0):
            value = torch.tensor([at], dtype=dtype)
            integer = {2: torch.int16, 4: torch.int32}[value.element_size()]
            neighbour = (value.view(integer) + 1).view(dtype)
            assert of(neighbour, value).max_ulp == 1.0, at
            assert of(value, value.double() + 0.25 * (neighbour.double() - value.double())).max_ulp == 0.25, at

    def test_below_a_power_of_two_steps_are_half_as_large(self) -> None:
        value = torch.tensor([1.0 - 2**-24])
        assert of(value, torch.tensor([1.0])).max_ulp == 0.5
        assert of(torch.tensor([1.0]), value).max_ulp == 1.0

    def test_beside_zero_it_counts_subnormals(self) -> None:
        assert of(torch.tensor([3 * 2.0**-149]), torch.tensor([0.0])).max_ulp == 3.0

    def test_an_oracle_beyond_the_format_counts_its_largest_steps(self) -> None:
        found = of(torch.tensor([torch.finfo(torch.float32).max]), torch.tensor([1e39], dtype=torch.float64))
        assert found.max_ulp == pytest.approx((1e39 - torch.finfo(torch.float32).max) / 2.0**104)

    def test_float64_has_its_own(self) -> None:
        assert of(torch.tensor([1 + 2.0**-52]).double() + 0.0, torch.tensor([1.0])).max_ulp in (0.0, 1.0)
        assert of(torch.tensor([1.0], dtype=torch.float64) + 2.0**-51, torch.tensor([1.0])).max_ulp == 2.0


class TestExtremes:
    @pytest.mark.parametrize("scale", [1e-300, 1e200])
    def test_squares_that_float64_does_not_hold(self, scale: float) -> None:
        oracle = torch.tensor([4.0, 3.0], dtype=torch.float64) * scale
        found = of(torch.tensor([4.0, 4.0], dtype=torch.float64) * scale, oracle)
        assert found.rms_error == pytest.approx(scale / math.sqrt(2))
        assert found.snr_db == pytest.approx(20 * math.log10(5))
        assert found.cosine == pytest.approx(28 / (5 * math.sqrt(32)))

    def test_an_error_where_nothing_was_to_be_is_infinitely_loud(self) -> None:
        found = of(torch.tensor([1e-3, 0.0]), torch.zeros(2))
        assert found.snr_db == -math.inf and found.cosine == 0.0

    def test_an_answer_that_is_lost_does_not_point_the_right_way(self) -> None:
        assert of(torch.zeros(2), torch.tensor([1.0, 1.0])).cosine == 0.0
        assert of(torch.zeros(2), torch.zeros(2)).cosine == 1.0


class TestPercentile:
    def test_one_bad_element_in_a_hundred_is_left_out(self) -> None:
        error = torch.zeros(200)
        error[17], error[18] = 5.0, 4.0
        assert of(error, torch.zeros(200)).p99_error == 0.0
        error[19] = 3.0
        assert of(error, torch.zeros(200)).p99_error == 3.0

    def test_of_many_elements_it_is_that_of_all_channels(self) -> None:
        # One channel of sixteen is bad. Every sixteenth element would be of one channel: none of them bad, or all.
        error = torch.zeros(1 << 17, 16)
        error[:, 3] = torch.linspace(0, 1, 1 << 17)
        found = of(error, torch.zeros(error.shape)).p99_error
        # Of all elements, 1/16 are spread over (0, 1): the largest hundredth begins at 1 - 0.16.
        assert found == pytest.approx(0.84, abs=0.01)
