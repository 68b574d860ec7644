"""A check that could not have failed is inconclusive, and says why."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.verdict import STRESSED, Figures, Outcome
from flowopt.verification.evidence import collect_evidence
from flowopt.verification.verify_outputs import verify_outputs
from flowopt.verification.weakness import weak_outputs
from flowopt.workflows.verify import verify

FLOAT = {"y": torch.float32}


def figures(power: float = 1e-6, **changes: object) -> Figures:
    fields = {"output": "y", "case": "traced", "regime": "normal", "undecided": 0, "elements": 100, **changes}
    return Figures(max_error=0.0, own_error=0.0, ratio=0.0, twin_error=None, power=power, **fields)  # type: ignore[arg-type]  # fields of several types


class TestFigures:
    def test_one_case_that_sees_well_is_enough(self) -> None:
        assert weak_outputs([figures(1.0), figures(1e-6), figures(math.inf)], FLOAT) == []

    def test_ordinary_numbers_count_before_larger_ones(self) -> None:
        given = [figures(1.0), figures(1e-6, regime="spikes")]
        assert len(weak_outputs(given, FLOAT)) == 1
        assert weak_outputs([figures(math.inf), figures(1e-6, regime="negative")], FLOAT) == []

    def test_the_best_case_and_its_power_are_named(self) -> None:
        (text,) = weak_outputs([figures(1.0), figures(2.5e-3, case="prime[b=3]")], FLOAT)
        assert "prime[b=3]" in text and "2.5e-03" in text and "1e-03" in text and "ill-conditioned" in text

    def test_every_output_is_asked(self) -> None:
        given = [figures(1e-7), figures(1.0, output="z")]
        (text,) = weak_outputs(given, {"y": torch.float32, "z": torch.float32})
        assert text.startswith("z: ")

    def test_nothing_finite_is_nothing_compared(self) -> None:
        (text,) = weak_outputs([figures(math.inf)], FLOAT)
        assert "no case has a finite element" in text

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
    def test_decisions_need_no_power(self, dtype: torch.dtype) -> None:
        assert weak_outputs([figures(0.4, undecided=40)], {"y": dtype}) == []

    def test_decisions_that_may_fall_either_way_decide_nothing(self) -> None:
        (text,) = weak_outputs([figures(0.9, undecided=90), figures(0.6, undecided=60)], {"y": torch.int64})
        assert "at least 60%" in text

    def test_an_empty_output_of_one_case_does_not_speak_for_the_others(self) -> None:
        given = [figures(0.9, undecided=90), figures(0.0, elements=0)]
        assert len(weak_outputs(given, {"y": torch.int64})) == 1
        assert weak_outputs([figures(0.0, elements=0)], FLOAT) == []

    def test_stressed_weights_do_not_speak_for_the_models_own(self) -> None:
        given = [figures(1.0), figures(1e-9, regime=f"{STRESSED} normal")]
        assert len(weak_outputs(given, FLOAT)) == 1

    @pytest.mark.parametrize(
        ("dtype", "seen", "unseen"),
        [(torch.float16, 0.09, 0.11), (torch.bfloat16, 0.25, 0.35), (torch.float64, 9e-4, 2e-3)],
    )
    def test_each_format_has_a_limit_of_its_own(self, dtype: torch.dtype, seen: float, unseen: float) -> None:
        assert weak_outputs([figures(seen)], {"y": dtype}) == []
        assert len(weak_outputs([figures(unseen)], {"y": dtype})) == 1


class Applied(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = body
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x @ self.weight)


def program(body: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Program:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    return capture(Applied(body, dtype).eval(), (x,), dynamic={"x": {0: "batch"}})


class TestVerdicts:
    def test_what_cancels_is_inconclusive_and_says_so(self) -> None:
        lossy = program(lambda y: (y + 1e6) - 1e6)
        result = verify(lossy, lossy)
        assert result.outcome is Outcome.INCONCLUSIVE and not result and result.findings == ()
        assert "ill-conditioned, weak evidence" in result.reason

    def test_so_it_is_for_a_lowered_file(self) -> None:
        lossy = program(lambda y: (y + 1e6) - 1e6)
        assert verify_outputs(collect_evidence(lossy), lossy.run_named).outcome is Outcome.INCONCLUSIVE

    def test_a_difference_that_is_seen_all_the_same_is_different(self) -> None:
        lossy = program(lambda y: (y + 1e6) - 1e6)
        assert verify(lossy, program(lambda y: (y + 1e6) - 1e6 + 5)).outcome is Outcome.DIFFERENT

    def test_nan_in_every_case_is_inconclusive(self) -> None:
        nothing = program(lambda y: torch.sqrt(-1 - y * y))
        result = verify_outputs(collect_evidence(nothing), nothing.run_named)
        assert result.outcome is Outcome.INCONCLUSIVE
        assert "no case has a finite element" in result.reason

    def test_clear_decisions_alone_are_equivalent(self) -> None:
        chosen = program(lambda y: y.argmax(-1))
        assert verify_outputs(collect_evidence(chosen), chosen.run_named).outcome is Outcome.EQUIVALENT

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_healthy_models_in_16_bits_are_equivalent(self, dtype: torch.dtype) -> None:
        healthy = program(lambda y: torch.softmax(y, -1) @ y.t(), dtype)
        assert verify_outputs(collect_evidence(healthy), healthy.run_named).outcome is Outcome.EQUIVALENT
