import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification import grouping
from flowopt.verification.grouping import grouped
from flowopt.verification.inputs.cases import Case


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * x)


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Doubling().eval(), (torch.zeros(3, 4),), dynamic={"x": {0: "batch"}})


def cases_of(sizes: list[int]) -> list[Case]:
    """Inputs are not needed to tell what a case takes."""
    return [Case(f"case{i}", {"batch": size}, {}) for i, size in enumerate(sizes)]


def limit_to(monkeypatch: pytest.MonkeyPatch, program: Program, batch: int) -> None:
    monkeypatch.setattr(grouping, "_GROUP_BYTES", activation_bytes(program, {"batch": batch}, raised=True))


@pytest.mark.parametrize("sizes", [[], [1], [1] * 100, [1, 50, 1, 1], [50, 50], list(range(1, 60)), [60, 1, 59, 2, 58]])
def test_no_case_is_lost_and_the_order_stays(
    monkeypatch: pytest.MonkeyPatch, program: Program, sizes: list[int]
) -> None:
    limit_to(monkeypatch, program, 20)
    cases = cases_of(sizes)
    groups = list(grouped(program, iter(cases)))
    assert [case for group in groups for case in group] == cases
    assert all(groups)


def test_small_cases_share_the_reading_of_weights(program: Program) -> None:
    assert [len(group) for group in grouped(program, cases_of([1, 2, 3]))] == [3]


def test_the_activations_of_a_group_fit_together(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    limit_to(monkeypatch, program, 20)
    groups = [[case.sizes["batch"] for case in group] for group in grouped(program, cases_of([5, 5, 10, 5, 15, 1]))]
    assert groups == [[5, 5, 10], [5, 15], [1]]


def test_a_large_case_is_alone(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    limit_to(monkeypatch, program, 20)
    groups = [[case.sizes["batch"] for case in group] for group in grouped(program, cases_of([1, 1, 90, 1, 80, 70]))]
    assert groups == [[1, 1], [90], [1], [80], [70]]


def test_a_group_has_an_end_for_the_smallest_cases_too(program: Program) -> None:
    assert [len(group) for group in grouped(program, cases_of([1] * 70))] == [32, 32, 6]
