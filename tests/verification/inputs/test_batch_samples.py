"""Cases that hold samples of another case."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.battery import full_cases, planned_cases
from tests.program.models import Counter
from tests.verification.battery_programs import Applied, Pair, by_name, features, fixed, text


@pytest.mark.parametrize("make", [text, features])
def test_they_are_those_of_prime(make: Callable[[], Program]) -> None:
    cases = by_name(make())
    for name, chosen in (("solo", (1,)), ("permuted", (2, 1, 0))):
        case = cases[name]
        assert case.samples == ("prime", chosen)
        assert case.sizes == cases["prime"].sizes | {"batch": len(chosen)}
        assert case.regime == "mixed-rows"
        for key, tensor in case.inputs.items():
            assert torch.equal(tensor, cases["prime"].inputs[key][list(chosen)])


def test_there_are_none_without_a_free_batch() -> None:
    assert not [case for case in full_cases(fixed(), 0) if case.samples is not None]


def test_there_are_none_where_an_input_has_no_batch() -> None:
    dynamic = {"x": {0: "batch"}}
    program = capture(Pair().eval(), (torch.zeros(4, 5), torch.zeros(1, 5)), dynamic=dynamic)
    assert not [plan for plan in planned_cases(program, 0) if plan.name in ("solo", "permuted")]


def test_there_are_none_where_the_batch_is_another_axis_too() -> None:
    dynamic = {"x": {0: "batch", 1: "batch"}}
    program = capture(Applied(torch.tanh).eval(), (torch.zeros(4, 4),), dynamic=dynamic)
    assert not [plan for plan in planned_cases(program, 0) if plan.name in ("solo", "permuted")]


def test_one_alone_needs_a_batch_of_one() -> None:
    names = {plan.name for plan in planned_cases(features((("batch", (2, 9)),)), 0)}
    assert "permuted" in names and "solo" not in names


def test_state_stays_whole() -> None:
    class Adding(Counter):
        def forward(self, x: Tensor) -> Tensor:
            self.cache.mul_(0.5)
            return x + self.cache.sum()

    program = capture(Adding().eval(), (torch.ones(4, 3),), dynamic={"x": {0: "batch"}})
    cases = by_name(program)
    assert torch.equal(cases["solo"].inputs["state_cache"], cases["prime"].inputs["state_cache"])
    assert cases["solo"].inputs["x"].shape[0] == 1
