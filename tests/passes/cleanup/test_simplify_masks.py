"""Grids of positions: what reads through them reads directly, and what only seems to be such a grid is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flowopt
from flowopt.ir.text import operator_census
from flowopt.passes.cleanup.simplify_masks import SimplifyMasks
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.programs import Written
from tests.zoo.models import ZOO

SIZES = {0: "batch", 1: "length"}


def program(forward: Callable[..., Any]) -> Program:
    x = torch.randint(0, 2, (5, 6), generator=torch.Generator().manual_seed(0))
    dims: dict[str, tuple[int, int | None]] = dict.fromkeys(SIZES.values(), (4, 16))
    return capture(Written(forward).eval(), (x,), dynamic={"x": SIZES}, dims=dims)


def simplified(one: Program) -> Program:
    """After the pass, which is kept and finds nothing more."""
    run = run_passes(one, [SimplifyMasks()] * 2, [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0].reason
    assert not run.records[1].applied
    return run.program


def refusals(one: Program) -> list[str]:
    run = run_passes(one, [SimplifyMasks()], [VerifyPasses()])
    assert not run.records[0].applied
    return [refusal.code for refusal in run.records[0].refused]


def require_same(one: Program, other: Program) -> None:
    for batch, length in ((4, 4), (5, 6), (4, 7)):
        x = torch.randint(0, 2, (batch, length), generator=torch.Generator().manual_seed(length))
        torch.testing.assert_close(other.run(x), one.run(x), rtol=0, atol=0)


def count(one: Program, operator: str) -> int:
    return sum(number for name, number in operator_census(one.graph).items() if name.startswith(operator))


def rows(m: Any, x: Tensor) -> Tensor:
    return torch.arange(x.shape[0])[:, None, None, None]


def columns(m: Any, x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[None, None, None, :]


def padding(m: Any, x: Tensor) -> Tensor:
    return x.bool()[rows(m, x), columns(m, x)].float()


def turned(m: Any, x: Tensor) -> Tensor:
    return x.bool()[torch.arange(x.shape[0])[None, :], torch.arange(x.shape[1])[:, None]].float()


def first_axis_alone(m: Any, x: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0])].float()


def behind_moves(m: Any, x: Tensor) -> Tensor:
    grid = (torch.arange(1, x.shape[1] + 1) - 1).unsqueeze(0).transpose(0, 1).expand(-1, 1)
    return x.bool()[torch.arange(x.shape[0]), grid].float()


@pytest.mark.parametrize("forward", [padding, turned, first_axis_alone, behind_moves])
def test_a_gathering_by_positions_is_a_move(forward: Callable[..., Tensor]) -> None:
    one = program(forward)
    after = simplified(one)
    assert (count(one, "aten.index"), count(after, "aten.index")) == (1, 0)
    require_same(one, after)


def from_the_second(m: Any, x: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]), torch.arange(1, x.shape[1])[:, None]].float()


def both_along_one(m: Any, x: Tensor) -> Tensor:
    square = (x[:, None, :] * x[:, :, None]).sum(0)
    positions = torch.arange(x.shape[1])
    return square[positions, positions].float()


def repeated(m: Any, x: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0])[:, None].expand(-1, 4)].float()


@pytest.mark.parametrize("forward", [from_the_second, both_along_one, repeated])
def test_a_gathering_that_moves_or_repeats_elements_stays(forward: Callable[..., Tensor]) -> None:
    assert refusals(program(forward)) == ["axis-mismatch"]


def test_positions_of_another_axis_are_not_taken_for_those_of_this_one() -> None:
    def crossed(m: Any, x: Tensor) -> Tensor:
        # As many as a row has places, which is no more than there are rows at these sizes alone.
        return x.repeat(4, 1)[torch.arange(x.shape[1])].float()

    assert refusals(program(crossed)) == ["axis-mismatch"]


@pytest.mark.parametrize(
    "indices",
    [
        pytest.param(lambda x: x.argsort(dim=1)[0], id="computed"),
        pytest.param(lambda x: torch.arange(0, x.shape[1], 2), id="every other"),
        pytest.param(lambda x: torch.arange(x.shape[1]) * 1 // 2, id="halved"),
        pytest.param(lambda x: torch.arange(x.shape[1]).flip(0), id="backwards"),
    ],
)
def test_what_is_no_count_in_steps_of_one_is_no_site(indices: Callable[[Tensor], Tensor]) -> None:
    one = program(lambda m, x: x[torch.arange(x.shape[0])[:, None], indices(x)].float())
    assert not run_passes(one, [SimplifyMasks()], []).records[0].anchors


def ones_and(m: Any, x: Tensor) -> Tensor:
    return (x.new_ones((), dtype=torch.bool) & (x > 0)).float()


def filled_and(m: Any, x: Tensor) -> Tensor:
    return (torch.ops.aten.new_full.default(x, [1, 1], True, dtype=torch.bool) & (x > 0)).float()


def positions_and(m: Any, x: Tensor) -> Tensor:
    grid = torch.arange(x.shape[1])[None, None, :, None]
    return ((grid >= 0) & (x > 0)[:, None, None, :]).float()


def either_and(m: Any, x: Tensor) -> Tensor:
    return ((x > 0) & ((x > 1) | (torch.arange(x.shape[1]) + 3 > 2)[None])).float()


def nested_and(m: Any, x: Tensor) -> Tensor:
    grid = torch.arange(x.shape[1])
    return torch.logical_and((grid != -1) & torch.ones_like(grid, dtype=torch.bool), x > 0).float()


@pytest.mark.parametrize("forward", [ones_and, filled_and, positions_and, either_and, nested_and])
def test_a_condition_that_always_holds_is_dropped(forward: Callable[..., Tensor]) -> None:
    one = program(forward)
    after = simplified(one)
    assert count(one, "aten.__and__") + count(one, "aten.logical_and") + count(one, "aten.bitwise_and") > 0
    assert count(after, "aten.__and__") + count(after, "aten.logical_and") + count(after, "aten.bitwise_and") == 0
    require_same(one, after)


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(lambda x: torch.arange(x.shape[1]) >= 1, id="not at the first"),
        pytest.param(lambda x: torch.arange(x.shape[1]) - 1 > -1, id="shifted below"),
        pytest.param(lambda x: torch.arange(x.shape[1]) < 99, id="bounded above"),
        pytest.param(lambda x: torch.arange(x.shape[1], 0, -1) > 0, id="counted down"),
        pytest.param(lambda x: x.new_full((x.shape[1],), 0, dtype=torch.bool), id="filled with 0"),
        pytest.param(lambda x: torch.zeros(x.shape[1], dtype=torch.bool), id="never"),
    ],
)
def test_a_condition_that_may_fail_stays(condition: Callable[[Tensor], Tensor]) -> None:
    one = program(lambda m, x: (condition(x)[None] & (x > 0)).float())
    assert not run_passes(one, [SimplifyMasks()], []).records[0].anchors


def test_bits_are_not_conditions() -> None:
    one = program(lambda m, x: x & torch.ones_like(x))
    assert not run_passes(one, [SimplifyMasks()], []).records[0].anchors


def test_an_output_keeps_memory_of_its_own() -> None:
    assert refusals(program(lambda m, x: x[torch.arange(x.shape[0])])) == ["graph-output"]


@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(3)),
    between=st.lists(st.integers(0, 3), max_size=2),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
)
def test_any_grid_of_whole_axes_reads_the_same(order: list[int], between: list[int], shape: tuple[int, ...]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        rank = 3 + len(between)
        free = sorted(range(rank), key=lambda axis: (axis in between, axis))[:3]
        indices = []
        for axis in range(3):
            sizes = [1] * rank
            sizes[free[order[axis]]] = -1
            grid = torch.arange(x.shape[axis])
            for place in range(rank):
                if sizes[place] == 1:
                    grid = grid.unsqueeze(place)
            indices.append(grid)
        return x[indices].cos()

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    one = capture(Written(forward).eval(), (x,))
    after = simplified(one)
    torch.testing.assert_close(after.run(x), one.run(x), rtol=0, atol=0)


def test_a_text_model_gathers_no_mask() -> None:
    model = ZOO["bert"]()
    one = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    result = flowopt.optimize(one, target="torch", dry_run=True)
    assert result.verdict.outcome.value == "equivalent"
    assert count(one, "aten.index") == 1
    assert count(result.program, "aten.index") == count(result.program, "aten.arange") == 0
