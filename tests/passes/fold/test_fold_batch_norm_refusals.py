"""Where ``fold-batch-norm`` refuses, and why."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.layers import conv_then
from tests.passes.programs import Written, canonical, normal, randomised, undecomposed


@pytest.mark.parametrize(
    ("between", "norm", "code"),
    [
        (lambda y: F.pad(y, (1, 1)), nn.BatchNorm2d(4), "not-linear-producer"),
        (torch.relu, nn.BatchNorm2d(4), "not-linear-producer"),
        (lambda y: y.flatten(1), nn.BatchNorm1d(36), "axis-mismatch"),
        (lambda y: y.transpose(1, 2), nn.BatchNorm2d(3), "axis-mismatch"),
        (lambda y: y[:, :2], nn.BatchNorm2d(2), "unsupported-spelling"),
        (lambda y: y.unflatten(1, (2, 2)), nn.BatchNorm3d(2), "axis-mismatch"),
    ],
    ids=["pad", "relu", "flatten", "transpose", "some-channels", "split-channels"],
)
def test_refuses_through_operators_that_do_more(
    between: Callable[[Tensor], Tensor], norm: nn.Module, code: str
) -> None:
    assert_refuses(FoldBatchNorm(), conv_then(between, norm), (normal(2, 3, 4, 4),), code=code)


def test_refuses_when_one_channel_is_repeated() -> None:
    module = conv_then(lambda y: y.expand(-1, 4, -1, -1), nn.BatchNorm2d(4), channels=1)
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 4, 4),), code="axis-mismatch")


def test_refuses_linear_whose_features_the_norm_does_not_normalise() -> None:
    # (N, C, L) with C == L: only the axis tells that the norm works on something else.
    module = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 4, 3),), code="axis-mismatch")


def test_refuses_an_unbatched_convolution_whose_length_the_norm_normalises() -> None:
    module = randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(3, 5),), code="axis-mismatch")


def test_refuses_when_the_convolution_is_read_elsewhere() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y) + y

    module = randomised(Written(forward, conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="multiple-readers")


def test_refuses_when_a_view_between_is_read_elsewhere() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.conv(x).flatten(2)
        return m.norm(y) + y

    module = randomised(Written(forward, conv=nn.Conv2d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5, 5),), code="multiple-readers")


def test_refuses_when_the_convolution_is_an_output() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return m.norm(y), y

    module = randomised(Written(forward, conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="multiple-readers")


def test_refuses_when_the_saved_statistics_are_read() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        n = m.norm
        saved = torch.native_batch_norm(m.conv(x), None, None, n.running_mean, n.running_var, False, 0.1, n.eps)
        return saved[0], saved[1]

    module = randomised(Written(forward, conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="multiple-readers")


def test_refuses_a_norm_in_train_mode() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return F.batch_norm(m.conv(x), m.norm.running_mean, m.norm.running_var, training=True)

    module = randomised(Written(forward, conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="train-mode")


def test_refuses_a_norm_without_running_statistics() -> None:
    module = randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4, track_running_stats=False)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="batch-statistics")


def test_refuses_a_spelling_that_canonicalize_aten_would_have_replaced() -> None:
    program = undecomposed(randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4))), normal(2, 3, 5))
    assert_refuses(FoldBatchNorm(), program, code="unsupported-spelling")
    run = run_passes(canonical(program), [FoldBatchNorm()])
    assert len(run.records[0].applied) == 1


def test_refuses_statistics_that_are_inputs() -> None:
    def forward(m: Written, x: Tensor, mean: Tensor) -> Tensor:
        return F.batch_norm(m.conv(x), mean, m.norm.running_var)

    module = randomised(Written(forward, conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5), normal(4)), code="not-constant")


def test_refuses_a_weight_that_is_an_input() -> None:
    module = randomised(Written(lambda m, x, w: m.norm(F.conv1d(x, w)), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5), normal(4, 3, 2)), code="not-constant")


def test_refuses_statistics_that_the_model_changes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        m.norm.running_mean.mul_(0.9)
        return m.norm(m.conv(x))

    module = randomised(Written(forward, conv=nn.Conv1d(3, 4, 2), norm=nn.BatchNorm1d(4)))
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="not-constant")


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_refuses_a_variance_that_is_nothing(variance: float) -> None:
    module = randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4, eps=1e-20)))
    module.get_buffer("1.running_var")[2] = variance
    # Captured only: a model that is NaN everywhere has nothing to verify.
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3, 5),), code="tiny-scale")


def test_min_variance_is_an_option() -> None:
    module = randomised(nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)))
    strict = FoldBatchNorm(min_variance=10.0)
    assert_refuses(strict, module, (normal(2, 3, 5),), code="tiny-scale")
    assert strict.text() == "fold-batch-norm:min_variance=10.0"


def test_refuses_a_folded_weight_that_would_overflow() -> None:
    module = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    module.get_parameter("1.weight").data[1] = 3e38
    module.get_buffer("1.running_var")[1] = 1e-4
    assert_refuses(FoldBatchNorm(), module, (normal(2, 3),), code="not-finite")


def test_refuses_a_weight_without_recorded_shape() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return m.norm(F.conv1d(x, m.w.split([3, 1], dim=1)[0]))

    module = randomised(Written(forward, w=nn.Parameter(normal(4, 4, 2)), norm=nn.BatchNorm1d(4)))
    program = capture(module, (normal(2, 3, 5),))
    del program.node("getitem").meta["val"]
    assert_refuses(FoldBatchNorm(), program, code="missing-metadata")
