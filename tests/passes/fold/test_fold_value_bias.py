from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.passes.fold.fold_value_bias import FoldValueBias
from flowopt.pipeline.runner import PipelineRun
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from tests.passes.fold.layers import DTYPES
from tests.passes.fold.values import HEADS, WIDTH, attention
from tests.passes.programs import canonical, decomposed, normal, together

X = normal(2, 5, WIDTH)
FREE: dict[str, Any] = {"dynamic": {"x": {0: "batch", 1: "tokens"}}}


def assert_folds(model: nn.Module | Program, *inputs: Tensor, sites: int = 1, **options: Any) -> PipelineRun:
    """The pass fires at ``sites`` sites, and no value projection keeps its bias."""
    run = assert_rewrites(FoldValueBias(), model, inputs, before={}, after={}, **options)
    (record,) = run.records
    assert (len(record.applied), record.refused) == (sites, ())
    assert not [name for name in run.program.tensors if name.endswith("value.bias")]
    return run


@st.composite
def attentions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Attention, with an input."""
    form = draw(st.sampled_from(["library", "causal", "grouped", "written", "written-grouped", "stacked"]))
    module = attention(form, bias=draw(st.booleans()), seed=draw(st.integers(0, 99)))
    dtype = draw(DTYPES)
    return module.to(dtype), normal(draw(st.integers(1, 2)), draw(st.integers(1, 5)), WIDTH, dtype=dtype)


def assert_all_fold(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(module, *inputs, sites=len(cases))


@settings(deadline=None, derandomize=True, max_examples=4)
@given(st.lists(attentions(), min_size=2, max_size=3))
def test_any_value_bias_moves_to_the_output(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(attentions(), min_size=2, max_size=4))
def test_any_of_many_value_biases_moves_to_the_output(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


@pytest.mark.parametrize("form", ["library", "stacked"])
def test_folds_for_free_batch_and_sequence(form: str) -> None:
    assert_folds(attention(form), X, **FREE)


def test_the_new_bias_is_rounded_once() -> None:
    module = attention("library")
    run = assert_folds(module, X)
    value, out = module.value.double(), module.out.double()
    assert torch.equal(run.program.tensors["out.bias_1"], (out.bias + out.weight @ value.bias).float())


def test_an_output_projection_without_bias_gets_one() -> None:
    run = assert_folds(attention("library", bias=False), X)
    assert "out.bias" in run.program.tensors


def test_the_bias_of_grouped_heads_is_repeated() -> None:
    module = attention("grouped")
    run = assert_folds(module, X)
    value, out = module.value.double(), module.out.double()
    repeated = value.bias.view(2, -1).repeat_interleave(HEADS // 2, 0).flatten()
    assert torch.equal(run.program.tensors["out.bias_1"], (out.bias + out.weight @ repeated).float())


@pytest.mark.parametrize("form", ["written", "written-grouped"])
def test_decomposed_attention_folds(form: str) -> None:
    assert_folds(canonical(decomposed(attention(form), X)), X)


def test_a_written_mask_of_minus_infinity_folds_because_hidden_rows_are_no_numbers() -> None:
    assert_folds(attention("written-masked"), X)


@pytest.mark.parametrize("form", ["stored-mask", "repeated-mask", "where-mask", "filled-mask"])
def test_masks_that_hide_no_row_fold(form: str) -> None:
    assert_folds(attention(form), X, dynamic={"x": {0: "batch"}} if form == "repeated-mask" else None)


def test_a_bias_packed_with_one_of_zeros_folds() -> None:
    module = attention("packed")
    module.packed.bias.data[: 2 * WIDTH] = 0.0
    run = assert_folds(module, X, **FREE)
    assert "packed.bias" not in run.program.tensors


def test_two_output_projections_both_get_the_bias() -> None:
    run = assert_folds(attention("two-outputs"), X)
    assert run.records[0].applied[0].summary.count("linear") == 3


def test_a_projection_called_twice_keeps_its_bias_for_the_other_call() -> None:
    module = attention("called-twice")
    run = assert_rewrites(FoldValueBias(), module, (X,), before={}, after={})
    assert torch.equal(run.program.tensors["value.bias"], module.value.bias)


def test_cross_attention_folds() -> None:
    assert_folds(attention("crossed"), X, normal(2, 3, WIDTH, seed=1))
