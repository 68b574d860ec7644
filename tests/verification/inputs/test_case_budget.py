"""Which cases are skipped, and that nothing is allocated for them."""

import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs import case_budget
from flowopt.verification.inputs.battery import planned_cases
from flowopt.verification.inputs.case_budget import within_budget
from flowopt.verification.inputs.cases import quick_cases

HUGE = 10**9
MODEST = 10**8  # bytes


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.unsqueeze(1)
        return functional.scaled_dot_product_attention(heads, heads, heads).squeeze(1)


@cache
def attending(longest: int | None = HUGE) -> Program:
    """One head of width 8: 32 operations per pair of positions."""
    dims: dict[str, tuple[int, int | None]] = {"batch": (1, 4), "sequence": (1, longest)}
    return capture(Attending().eval(), (torch.zeros(2, 6, 8),), dynamic={"x": {0: "batch", 1: "sequence"}}, dims=dims)


@cache
def elementwise() -> Program:
    axes = {"input": {0: "batch"}}
    return capture(nn.Tanh().eval(), (torch.zeros(2, 8),), dynamic=axes, dims={"batch": (1, HUGE)})


def test_small_cases_stay_in_their_order() -> None:
    plans = planned_cases(attending(64), 0)
    assert within_budget(attending(64), plans, memory_bytes=MODEST) == (plans, ())


def test_what_is_too_long_is_named_with_its_operations() -> None:
    # 2 samples * 5000^2 pairs * 32, and twice that for 4 samples.
    kept, skipped = within_budget(attending(5000), planned_cases(attending(5000), 0), budget_tflop=1e-3)
    assert skipped == (
        "longest-sequence[batch=2,sequence=5000]: skipped, 0.0016 TFLOP is above --case-budget 0.001",
        "alike-sequence[batch=2,sequence=5000]: skipped, 0.0016 TFLOP is above --case-budget 0.001",
        "joint-maximum[batch=4,sequence=5000]: skipped, 0.0032 TFLOP is above --case-budget 0.001",
    )
    assert len(kept) == len(planned_cases(attending(5000), 0)) - 3


def test_what_is_too_large_is_named_with_its_bytes() -> None:
    plans = planned_cases(attending(50_000), 0)
    kept, skipped = within_budget(attending(50_000), plans, memory_bytes=10**7)
    assert [line.split(":")[0] for line in skipped] == [plan.label for plan in plans if plan.sizes["sequence"] > 1000]
    for line in skipped:
        assert re.search(r": skipped, it needs about [0-9.e-]+ GB of memory, and 0\.01 GB are free$", line)


def test_a_budget_that_is_just_enough_is_enough() -> None:
    plans = [plan for plan in planned_cases(attending(5000), 0) if plan.name == "longest-sequence"]
    assert within_budget(attending(5000), plans, budget_tflop=1.6e-3 + 1e-9, memory_bytes=MODEST)[1] == ()
    assert len(within_budget(attending(5000), plans, budget_tflop=1.6e-3 - 1e-6, memory_bytes=MODEST)[1]) == 1


def test_nothing_is_allocated_for_what_is_skipped() -> None:
    # The inputs of the longest case alone would be 64 GB; planning and skipping it takes none of them.
    plans = planned_cases(attending(), 0)
    assert max(plan.sizes["sequence"] for plan in plans) == HUGE
    kept, skipped = within_budget(attending(), plans)
    assert len(skipped) == 4 and all("TFLOP" in line for line in skipped)
    assert max(plan.make().inputs["x"].numel() for plan in kept) < 10_000


def test_a_huge_case_within_the_operations_is_too_large_for_memory() -> None:
    program = capture(
        nn.Tanh().eval(), (torch.zeros(2, 8),), dynamic={"input": {0: "batch"}}, dims={"batch": (1, HUGE)}
    )
    kept, skipped = within_budget(program, planned_cases(program, 0), memory_bytes=10**10)
    # The inputs and outputs of the oracle are 64 GB each; 21 bytes a number are kept of the outputs.
    assert skipped == (f"longest-batch[batch={HUGE}]: skipped, it needs about 488 GB of memory, and 10 GB are free",)
    assert "longest-batch" not in {plan.name for plan in kept}


def test_the_evidence_of_earlier_cases_counts() -> None:
    program = attending(64)
    plans = planned_cases(program, 0)
    alone = [plan for plan in plans if plan.name == "joint-maximum"]
    # Of 4 * 64 * 8 numbers: input and output in float64, and what is kept of the output.
    just_enough = 4 * 64 * 8 * (40 + 21)
    assert within_budget(program, alone, memory_bytes=just_enough)[1] == ()
    assert within_budget(program, plans, memory_bytes=just_enough)[1] != ()


def test_cases_that_exist_already_are_judged_alike() -> None:
    cases = quick_cases(attending(64), 0)
    kept, skipped = within_budget(attending(64), cases, budget_tflop=0.0)
    assert kept == () and len(skipped) == len(cases)


def test_where_free_memory_is_unknown_only_operations_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_budget, "free_bytes", lambda: None)
    program = capture(
        nn.Tanh().eval(), (torch.zeros(2, 8),), dynamic={"input": {0: "batch"}}, dims={"batch": (1, HUGE)}
    )
    assert within_budget(program, planned_cases(program, 0))[1] == ()


def test_free_memory_is_asked_for_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_budget, "free_bytes", lambda: 10)
    kept, skipped = within_budget(attending(64), planned_cases(attending(64), 0))
    assert kept == () and all("are free" in line for line in skipped)
