import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs import case_budget
from flowopt.verification.inputs.battery import full_cases, planned_cases
from flowopt.verification.inputs.case_budget import within_budget
from flowopt.verification.inputs.case_plan import CasePlan
from flowopt.verification.inputs.cases import Case, quick_cases
from flowopt.verification.inputs.selected_cases import selected_cases
from tests.program.models import Counter


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    x = torch.arange(24.0).reshape(3, 2, 4)
    dims: dict[str, tuple[int, int | None]] = {"batch": (1, 40), "sequence": (1, 40)}
    return capture(Product().eval(), (x,), dynamic={"x": {0: "batch", 1: "sequence"}}, dims=dims)


def mine(count: int = 1) -> list[Case]:
    sizes = {"batch": 2, "sequence": 3}
    return [Case(f"data:{i}", sizes, {"x": torch.ones(2, 3, 4)}, regime="data", is_natural=True) for i in range(count)]


def labels(cases: tuple[Case, ...]) -> list[str]:
    return [case.label for case in cases]


def test_quick_has_its_cases_and_then_the_user_s(program: Program) -> None:
    cases, skipped = selected_cases(program, "quick", 0, data=iter(mine(2)))
    assert labels(cases) == [*labels(quick_cases(program, 0)), *(case.label for case in mine(2))]
    assert skipped == ()


def test_full_ends_with_the_example_the_user_s_and_the_joint_maximum(program: Program) -> None:
    cases, skipped = selected_cases(program, "full", 0, data=mine())
    battery = labels(full_cases(program, 0))
    assert labels(cases)[:-3] == battery[:-1]
    assert [case.name for case in cases[-3:]] == ["example", "data:0", "joint-maximum"]
    assert labels(cases)[-1] == battery[-1]
    assert skipped == ()


def test_the_example_is_what_the_program_was_captured_with(program: Program) -> None:
    cases, _ = selected_cases(program, "full", 0)
    example = next(case for case in cases if case.name == "example")
    assert torch.equal(example.inputs["x"], torch.arange(24.0).reshape(3, 2, 4))
    assert example.sizes == {"batch": 3, "sequence": 2}
    assert example.is_natural and example.regime == "example"


def test_the_example_has_the_stored_state() -> None:
    program = capture(Counter().eval(), (torch.ones(1, 3),))
    cases, _ = selected_cases(program, "full", 0)
    example = next(case for case in cases if case.name == "example")
    assert set(example.inputs) == {i.name for i in program.inputs}
    for one in program.inputs:
        if one.state is not None:
            assert example.inputs[one.name] is program.tensors[one.state]


def test_an_archive_comes_without_an_example(program: Program) -> None:
    bare = program.copy()
    bare.example = {}
    cases, _ = selected_cases(bare, "full", 0)
    assert cases and "example" not in {case.name for case in cases}


def test_seeds_change_the_values_and_not_the_names(program: Program) -> None:
    first, again, other = (selected_cases(program, "full", seed)[0] for seed in (0, 0, 1))
    assert labels(first) == labels(again) == labels(other)
    numbers = [
        [case.inputs["x"].nan_to_num(7.0).flatten().tolist() for case in found] for found in (first, again, other)
    ]
    assert numbers[0] == numbers[1] != numbers[2]


def test_what_is_above_the_budget_is_named_and_never_made(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(plan: CasePlan) -> CasePlan:
        def make() -> Case:
            made.append(plan.label)
            return plan.make()

        return CasePlan(plan.name, plan.sizes, make)

    plans = tuple(map(noted, planned_cases(program, 0)))
    monkeypatch.setattr("flowopt.verification.inputs.selected_cases.planned_cases", lambda *_: plans)
    cases, skipped = selected_cases(program, "full", 0, budget_tflop=1e-8)
    assert [text for text in skipped if text.startswith("joint-maximum[batch=40,sequence=40]: skipped, ")]
    assert made == [case.label for case in cases if case.name != "example"]
    assert "joint-maximum[batch=40,sequence=40]" not in made


def test_the_budget_holds_for_user_data_and_the_example(program: Program) -> None:
    cases, skipped = selected_cases(program, "full", 0, budget_tflop=0.0, data=mine())
    assert cases == ()
    assert {text.split("[")[0] for text in skipped} >= {"example", "data:0", "traced"}


def test_user_data_has_the_memory_that_the_named_cases_leave(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, _ = selected_cases(program, "quick", 0, data=mine(4))
    assert len(cases) == 8
    needed = next(size for size in range(0, 1 << 20, 64) if len(kept_in(program, cases, size)) == 8)
    alone = next(size for size in range(0, 1 << 20, 64) if len(kept_in(program, cases[4:], size)) == 4)
    assert alone < needed
    for free, count in ((needed, 8), (needed - 64, 7)):
        monkeypatch.setattr(case_budget, "free_bytes", lambda size=free: size)
        kept, skipped = selected_cases(program, "quick", 0, data=mine(4))
        assert len(kept) == count and len(skipped) == 8 - count


def kept_in(program: Program, cases: tuple[Case, ...], memory_bytes: int) -> tuple[Case, ...]:
    return within_budget(program, cases, memory_bytes=memory_bytes)[0]
