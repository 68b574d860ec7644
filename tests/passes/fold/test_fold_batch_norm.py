from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.fold.layers import conv_then, convolutions, linear_layers
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together

NORM = "aten._native_batch_norm_legit_no_training"


def assert_folds(model: nn.Module | Program, *inputs: Tensor, norms: int = 1, **options: Any) -> PipelineRun:
    return assert_rewrites(FoldBatchNorm(), model, inputs, before={NORM: norms}, after={NORM: 0}, **options)


# Right on every kind of layer.


@settings(deadline=None, derandomize=True, max_examples=8)
@given(st.lists(convolutions(), min_size=2, max_size=3))
def test_any_convolution_folds(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(module, *inputs, norms=len(cases))


@settings(deadline=None, derandomize=True, max_examples=4)
@given(st.lists(convolutions(), min_size=3, max_size=3))
def test_any_decomposed_convolution_folds(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(canonical(decomposed(module, *inputs)), norms=len(cases))


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(convolutions(), min_size=3, max_size=4))
def test_any_of_many_convolutions_folds(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(module, *inputs, norms=len(cases))


@settings(deadline=None, derandomize=True, max_examples=4)
@given(st.lists(linear_layers(), min_size=2, max_size=4))
def test_any_linear_layer_folds(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(module, *inputs, norms=len(cases))


def test_decomposed_linear_folds() -> None:
    module = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    assert_folds(canonical(decomposed(module, normal(2, 3))))


def test_free_batch_and_image_sizes_fold() -> None:
    module = conv_then(lambda y: y, nn.BatchNorm2d(4))
    dims = {"batch": (1, None), "height": (3, 64), "width": (3, 64)}
    run = assert_folds(module, normal(2, 3, 5, 6), dynamic={"x": {0: "batch", 2: "height", 3: "width"}}, dims=dims)
    assert run.program.shape("output") == ("batch", 4, "height - 1", "width - 1")


def test_a_half_precision_layer_folds_below_a_float32_norm() -> None:
    module = conv_then(lambda y: y.float(), nn.BatchNorm2d(4))
    module.conv.to(torch.bfloat16)
    run = assert_folds(module, normal(2, 3, 4, 4, dtype=torch.bfloat16))
    assert {t.dtype for t in run.program.tensors.values()} == {torch.bfloat16}


def test_each_folded_weight_is_rounded_once() -> None:
    conv, norm = nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)
    run = assert_folds(randomised(nn.Sequential(conv, norm)), normal(2, 3, 5))
    conv.double(), norm.double()
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (conv.weight * scale.reshape(-1, 1, 1)).float()
    # The reciprocal root may differ in its last bit of float64; that moves no more than a tie of float32.
    torch.testing.assert_close(
        run.program.tensors["0.weight_1"], expected, rtol=torch.finfo(torch.float32).eps, atol=0.0
    )


def test_a_non_contiguous_input_gives_what_the_module_gives() -> None:
    module = conv_then(lambda y: y, nn.BatchNorm2d(4))
    x = normal(2, 4, 5, 3).permute(0, 3, 1, 2)
    run = assert_folds(module.double(), x.double())
    torch.testing.assert_close(run.program.run(x.double()), module(x.double()), rtol=1e-12, atol=1e-12)


def test_the_new_layer_says_where_it_comes_from() -> None:
    program = capture(conv_then(lambda y: y, nn.BatchNorm2d(4)), (normal(2, 3, 4, 4),))
    run = assert_folds(program)
    (conv,) = (n for n in run.program.graph.nodes if n.op == "call_function")
    assert conv.meta["rewritten_by"] == "fold-batch-norm"
    assert conv.meta["stack_trace"] == program.node("conv2d").meta["stack_trace"]


# What may stand between the layer and the norm.


def test_folds_through_operators_that_only_move() -> None:
    paths: list[tuple[Callable[[Tensor], Tensor], nn.Module]] = [
        (lambda y: y.flatten(2), nn.BatchNorm1d(4)),
        (lambda y: y.reshape(-1, 4, 1, 9), nn.BatchNorm2d(4)),
        (lambda y: y.transpose(2, 3), nn.BatchNorm2d(4)),
        (lambda y: y.transpose(0, 1).clone().transpose(1, 0), nn.BatchNorm2d(4)),
        (lambda y: y.unsqueeze(2), nn.BatchNorm3d(4)),
        (lambda y: y[:, :, :1].squeeze(2), nn.BatchNorm1d(4)),
        (lambda y: y[:, :, 1:, ::2], nn.BatchNorm2d(4)),
        (lambda y: y[..., 0, -1], nn.BatchNorm1d(4)),
    ]
    x = normal(2, 3, 4, 4)
    module, inputs = together([(conv_then(between, norm), x) for between, norm in paths])
    assert_folds(module, *inputs, norms=len(paths))


def test_folds_through_flatten_of_free_sizes() -> None:
    module = conv_then(lambda y: y.flatten(2), nn.BatchNorm1d(4))
    assert_folds(module, normal(2, 3, 4, 5), dynamic={"x": {0: "batch", 3: "width"}}, dims={"width": (3, 9)})


# Call sites.


def test_a_convolution_called_twice_keeps_its_weight_for_the_other_call() -> None:
    module = randomised(
        Written(lambda m, x: m.norm(m.conv(x)) * m.conv(x.flip(0)), conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4))
    )
    run = assert_folds(module, normal(2, 3, 5))
    assert torch.equal(run.program.tensors["conv.weight"], module.conv.weight)
    # A second weight (4, 3, 2) and bias (4,) in float32, less the norm's four vectors.
    assert run.records[0].added_bytes == 4 * (24 + 4) - 4 * 16


def test_both_calls_of_a_convolution_fold_each_its_own_norm() -> None:
    module = Written(
        lambda m, x: m.a(m.conv(x)) * m.b(m.conv(x.flip(0))),
        conv=nn.Conv1d(3, 4, 2),
        a=nn.BatchNorm1d(4),
        b=nn.BatchNorm1d(4),
    )
    run = assert_folds(randomised(module), normal(2, 3, 5), norms=2)
    assert "conv.weight" not in run.program.tensors


def test_a_norm_shared_by_two_convolutions_folds_into_both() -> None:
    module = Written(
        lambda m, x: m.norm(m.a(x)) * m.norm(m.b(x)), a=nn.Conv1d(3, 4, 2), b=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)
    )
    assert_folds(randomised(module), normal(2, 3, 5), norms=2)


def test_two_norms_in_a_row_fold_in_one_run() -> None:
    module = randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.BatchNorm1d(4, eps=0.1)))
    run = assert_folds(module, normal(2, 3, 5), norms=2)
    assert len(run.records[0].applied) == 2


def test_tied_weights_of_two_layers_are_untied() -> None:
    module = Written(lambda m, x: m.norm(m.a(x)) * m.b(x), a=nn.Linear(3, 4), b=nn.Linear(3, 4), norm=nn.BatchNorm1d(4))
    module.a.weight = module.b.weight
    run = assert_folds(randomised(module), normal(2, 3))
    assert torch.equal(run.program.tensors["a.weight"], module.b.weight)


def test_folds_a_dead_channel_whose_variance_is_epsilon() -> None:
    module = randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)))
    module.get_buffer("1.running_var")[2] = 0.0
    assert_folds(module, normal(2, 3, 5))


def test_every_norm_is_a_site() -> None:
    layers = (
        nn.Conv1d(3, 4, 1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, track_running_stats=False),
    )
    program = capture(randomised(nn.Sequential(*layers)), (normal(2, 3, 5),))
    (record,) = run_passes(program, [FoldBatchNorm()], [VerifyPasses()]).records
    assert (len(record.applied), record.refusal_counts) == (1, {"not-linear-producer": 1, "batch-statistics": 1})
    assert record.anchors == 3
