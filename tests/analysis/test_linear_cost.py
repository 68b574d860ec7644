from dataclasses import replace

import pytest
import torch

from flowopt.analysis.linear_cost import Processor, merge_cost
from flowopt.analysis.linear_group import LinearGroup

GROUP = LinearGroup((1, 4, 64), (64, 64, 64), torch.float32, has_bias=False)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Numbers that a person can add up: a peak and a bandwidth of one, calls that cost a thousand.
UNIT = Processor(flops_per_second=1.0, bytes_per_second=1e12, call_seconds=1000.0, half_rows=0, half_columns=0)


def test_arithmetic_counts_two_operations_per_multiply_add() -> None:
    group = LinearGroup((3, 5), (2, 4), torch.float32, has_bias=False)
    cost = merge_cost(group, copies=False, processor=UNIT)
    assert cost.apart == 2 * 1000 + 2 * 3 * 5 * 2 + 2 * 3 * 5 * 4
    assert cost.merged == 1000 + 2 * 3 * 5 * 6


def test_taking_apart_costs_a_call_and_half_a_call_for_each_part() -> None:
    group = LinearGroup((3, 5), (2, 4), torch.float32, has_bias=False)
    views = merge_cost(group, copies=False, processor=UNIT)
    copies = merge_cost(group, copies=True, processor=UNIT)
    assert copies.apart == views.apart
    assert copies.merged - views.merged == pytest.approx(2 * 1000)


def test_taking_apart_reads_and_writes_every_output() -> None:
    group = LinearGroup((3, 5), (2, 4), torch.float32, has_bias=False)
    slow = replace(UNIT, bytes_per_second=1e-3, call_seconds=0.0)
    found = (
        merge_cost(group, copies=True, processor=slow).merged - merge_cost(group, copies=False, processor=slow).merged
    )
    assert found == pytest.approx(2 * 3 * 6 * 4 / 1e-3)


def test_a_layer_with_little_arithmetic_costs_what_it_moves() -> None:
    slow = replace(UNIT, bytes_per_second=1e-3, call_seconds=0.0)
    cost = merge_cost(LinearGroup((3, 5), (2, 4), torch.float64, has_bias=False), copies=False, processor=slow)
    assert cost.merged == pytest.approx((3 * 5 + 5 * 6 + 3 * 6) * 8 / 1e-3)


def test_a_bias_is_an_operator_of_its_own_beyond_two_axes() -> None:
    def apart(shape: tuple[int, ...], has_bias: bool) -> float:
        return merge_cost(LinearGroup(shape, (2, 4), torch.float32, has_bias), copies=False, processor=UNIT).apart

    assert apart((3, 5), True) == apart((3, 5), False)
    assert apart((1, 3, 5), True) - apart((1, 3, 5), False) == pytest.approx(2 * 1000)


def test_few_rows_and_columns_reach_half_of_the_peak() -> None:
    half = replace(UNIT, half_rows=3, call_seconds=0.0)
    group = LinearGroup((3, 5), (2, 4), torch.float32, has_bias=False)
    full = merge_cost(group, copies=False, processor=replace(half, half_rows=0))
    assert merge_cost(group, copies=False, processor=half).merged == 2 * full.merged


def test_float64_takes_twice_the_time_and_16_bits_no_less() -> None:
    fast = replace(UNIT, call_seconds=0.0)
    times = {d: merge_cost(replace(GROUP, dtype=d), copies=False, processor=fast).merged for d in DTYPES}
    assert times[torch.float64] == 2 * times[torch.float32] == 2 * times[torch.bfloat16]


def test_many_small_layers_gain_more_than_few_large_ones() -> None:
    small = LinearGroup((1, 1, 64), (64,) * 12, torch.float32, has_bias=True)
    large = LinearGroup((1, 512, 4096), (4096, 4096), torch.float32, has_bias=True)
    assert merge_cost(small, copies=True).gain > 1.1
    assert merge_cost(large, copies=True).gain < 1.0


def test_nothing_to_compute_has_a_cost_all_the_same() -> None:
    assert merge_cost(replace(GROUP, input_shape=(0, 64)), copies=True).gain > 0
    assert merge_cost(replace(GROUP, input_shape=(64,)), copies=True).gain > 0


def test_figures_read_as_a_sentence() -> None:
    assert str(GROUP) == "1x4x64 -> 64+64+64 float32"
    assert str(merge_cost(GROUP, copies=True)) == "20.5 us apart, 23.4 us merged (gain 0.876)"
