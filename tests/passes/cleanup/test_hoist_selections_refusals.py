"""Where ``hoist-selections`` refuses, and which selections are no sites."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.passes.cleanup.hoist_selections import HoistSelections
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.cleanup.selections import TOKENS, WIDTH, classifier, tokens
from tests.passes.programs import Written, randomised

X = tokens()


def layered(function: Callable[[Tensor], object]) -> nn.Module:
    """What ``function`` makes of a linear layer's output."""
    return randomised(Written(lambda m, x: function(m.layer(x)), layer=nn.Linear(WIDTH, WIDTH)))


def test_refuses_a_hidden_state_that_is_pooled_too() -> None:
    run = assert_refuses(HoistSelections(), classifier(lambda x: x[:, 0] + x.mean(1)), (X,), code="multiple-readers")
    assert run.records[0].refused[0].message == "all rows of layer_norm_2 are read by mean (aten.mean.dim)"


def test_refuses_a_hidden_state_of_which_two_tokens_are_read() -> None:
    run = assert_refuses(HoistSelections(), classifier(lambda x: x[:, 0] + x[:, 1]), (X,), code="multiple-readers")
    assert len(run.records[0].refused) == 2


def test_refuses_a_hidden_state_that_is_its_own_keys() -> None:
    module = layered(lambda x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)[:, 0] + x[:, 0])
    assert_refuses(HoistSelections(), module, (X,), code="multiple-readers")


def turned(x: Tensor) -> tuple[Tensor, Tensor]:
    moved = x.transpose(0, 1)
    return moved[0].sin(), moved


@pytest.mark.parametrize(
    "function",
    [lambda x: (x[:, 0], x), lambda x: (x.transpose(0, 1)[0].sin(), x.exp(), x), turned],
    ids=["itself", "among others", "moved"],
)
def test_refuses_a_hidden_state_that_is_returned_too(function: Callable[[Tensor], object]) -> None:
    run = assert_refuses(HoistSelections(), layered(function), (X,), code="graph-output")
    assert run.records[0].refused[0].message == "linear is an output of the model"


def test_refuses_rows_that_are_read_along_two_axes() -> None:
    module = layered(lambda x: (x + x.transpose(1, 2))[:, 0])
    x = torch.randn((2, WIDTH, WIDTH), generator=torch.Generator().manual_seed(0))
    assert_refuses(HoistSelections(), module, (x,), code="no-gain")


def test_refuses_most_of_the_rows() -> None:
    run = assert_refuses(HoistSelections(), layered(lambda x: x[:, 1:]), (X,), code="no-gain")
    assert run.records[0].refused[0].message == "4 of 5 rows are selected; largest_part is 0.5"


def test_most_of_the_rows_may_be_asked_for() -> None:
    run = run_passes(capture(layered(lambda x: x[:, 1:]), (X,)), [HoistSelections(largest_part=0.9)])
    assert len(run.records[0].applied) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[..., 0],
        lambda x: x.softmax(1)[:, 0],
        lambda x: nn.functional.layer_norm(x, (TOKENS, WIDTH))[:, 0],
        lambda x: x.cumsum(1)[:, 0],
        lambda x: x.flip(1)[:, 0],
        lambda x: x.reshape(-1, 3)[0],
        lambda x: x[:, ::2],
        lambda x: x.max(1).values[0],
        lambda x: torch.cat([x, x], 1)[:, 0],
        lambda x: nn.functional.conv1d(x.mT, torch.ones(2, WIDTH, 3))[..., 0],
    ],
    ids=["feature", "softmax", "norm", "sum", "flip", "cut", "steps", "largest", "joined", "convolution"],
)
def test_rows_that_depend_on_others_are_no_site(function: Callable[[Tensor], Tensor]) -> None:
    (record,) = run_passes(capture(layered(function), (X,)), [HoistSelections()]).records
    assert record.anchors == 0


def test_a_selection_from_an_input_is_no_site() -> None:
    module = randomised(Written(lambda m, x: m.layer(x.tanh()[:, 0]), layer=nn.Linear(WIDTH, 3)))
    (record,) = run_passes(capture(module, (X,)), [HoistSelections()]).records
    assert record.anchors == 0


def test_a_slice_of_free_length_is_no_site() -> None:
    program = capture(layered(lambda x: x[:, 1:]), (X,), dynamic={"x": {1: "sequence"}}, dims={"sequence": (3, 99)})
    (record,) = run_passes(program, [HoistSelections()]).records
    assert record.anchors == 0
