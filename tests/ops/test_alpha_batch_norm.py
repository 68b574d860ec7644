import copy

import pytest
import torch
from torch import nn

from flowopt.errors import UserError
from flowopt.ops import AlphaBatchNorm
from flowopt.ops._channels import token_moments
from tests.ops.test_power_norm import tokens


def source_norm(seed: int) -> nn.BatchNorm2d:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(3, eps=1e-3, dtype=torch.float64).eval()
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
    return norm


def test_with_target_weight_0_a_convolution_takes_it_in_as_a_batch_norm() -> None:
    source = source_norm(1)
    norm = AlphaBatchNorm.from_batch_norm(source, 0)
    convolution = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    fused = nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), source)
    x = tokens(1, 2, 2, 5, 6)
    torch.testing.assert_close(norm(convolution(x)), fused(x), rtol=0, atol=1e-12)  # sums of 18 products
    scale, shift = norm.frozen_affine()
    y = convolution(x)
    affine = scale[:, None, None] * y + shift[:, None, None]
    torch.testing.assert_close(norm(y), affine, rtol=0, atol=1e-13)  # the same, in another order


def test_statistics_are_mixed_with_the_unbiased_ones_of_the_batch() -> None:
    source = source_norm(2)
    assert source.running_mean is not None and source.running_var is not None
    norm = AlphaBatchNorm.from_batch_norm(source, 0.1)
    x = tokens(2, 4, 3, 2, 2)
    flat = x.movedim(1, -1).reshape(-1, 3)
    mean = 0.9 * source.running_mean + 0.1 * flat.mean(0)
    var = 0.9 * source.running_var + 0.1 * flat.var(0)
    expected = nn.functional.batch_norm(x, mean, var, source.weight, source.bias, eps=source.eps)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-13)  # sums of 16
    assert torch.equal(norm.running_mean, source.running_mean)


def test_with_target_weight_1_training_is_a_batch_norm_up_to_the_unbiased_variance() -> None:
    norm = AlphaBatchNorm(3, target_weight=1, eps=1e-5 * 16 / 15, channel_axis=1, dtype=torch.float64)
    x = tokens(3, 4, 3, 2, 2).requires_grad_()
    other = x.detach().clone().requires_grad_()
    gradient = tokens(4, 4, 3, 2, 2)
    norm(x).backward(gradient)
    (nn.functional.batch_norm(other, None, None, training=True, eps=1e-5) * (15 / 16) ** 0.5).backward(gradient)
    assert x.grad is not None and other.grad is not None
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-11, atol=1e-13)  # sums of 16, differences of them


def test_frozen_on_a_target_a_sample_no_longer_depends_on_its_batch() -> None:
    norm = AlphaBatchNorm.from_batch_norm(source_norm(5), 0.3)
    x = 2 + tokens(5, 6, 3, 4, 4)
    together = norm(x)
    assert (norm(x[:1]) - together[:1]).abs().max() > 1e-3
    norm.freeze_on([x[:2], x[2:]])
    torch.testing.assert_close(norm(x), together, rtol=0, atol=1e-12)  # sums of 96
    assert (norm(x[:1]) - norm(x)[:1]).abs().max() < 1e-10
    scale, shift = norm.frozen_affine()
    affine = scale[:, None, None] * x + shift[:, None, None]
    torch.testing.assert_close(norm.train()(x), affine, rtol=0, atol=1e-12)  # the same, in another order


def test_training_uses_the_stored_statistics_and_then_moves_them_like_torch() -> None:
    source = source_norm(6)
    assert source.running_mean is not None and source.running_var is not None
    norm = AlphaBatchNorm.from_batch_norm(source, 0).train()
    norm.momentum = 0.1
    x = tokens(6, 4, 3, 2, 2)
    torch.testing.assert_close(norm(x), source(x), rtol=1e-13, atol=1e-14)  # the same, in another order
    source.train()(x)
    torch.testing.assert_close(norm.running_mean, source.running_mean, rtol=1e-13, atol=1e-14)  # sums of 16
    torch.testing.assert_close(norm.running_var, source.running_var, rtol=1e-13, atol=0)  # sums of 16
    assert norm.num_batches_tracked.item() == 1


def test_from_affine_is_the_affine_map_in_eval_and_at_the_first_step() -> None:
    scale, shift, mean_square = tokens(7, 3), tokens(8, 3), tokens(9, 3).square()
    mean_square[1] = 0
    norm = AlphaBatchNorm.from_affine(scale, shift, mean_square)
    x = tokens(10, 2, 4, 3)
    for found in (norm.eval()(x), norm.train()(x)):
        torch.testing.assert_close(found, scale * x + shift, rtol=1e-13, atol=1e-13)  # a root, its inverse, one product
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def test_with_the_mean_of_its_inputs_training_leaves_the_affine_map_where_it_is() -> None:
    scale, shift, mean = tokens(13, 3), tokens(14, 3), 2 + tokens(15, 3)
    mean_square = mean.square() + 0.25
    norm = AlphaBatchNorm.from_affine(scale, shift, mean_square, mean=mean).train()
    assert torch.equal(norm.running_mean, mean)
    x = mean + 0.5 * tokens(16, 4, 8, 3)
    for found in (norm.eval()(x), norm.train()(x)):
        torch.testing.assert_close(found, scale * x + shift, rtol=1e-13, atol=1e-13)  # a root, its inverse, one product
    for seed in range(50):
        norm(mean + 0.5 * tokens(seed, 64, 3))
    # The statistics of ten batches of 64 tokens lie a few hundredths of a deviation from the true ones.
    assert (norm.eval()(x) - scale * x - shift).norm() < 0.06 * (scale * x + shift).norm()


def test_the_variance_of_a_constant_channel_is_not_negative() -> None:
    mean = torch.tensor([3.0, -0.1])
    norm = AlphaBatchNorm.from_affine(torch.ones(2), torch.zeros(2), mean.square() * (1 - 1e-7), mean=mean)
    assert norm.running_var.tolist() == [0, 0]
    torch.testing.assert_close(norm.eval()(mean), mean, rtol=1e-6, atol=0)  # float32


@pytest.mark.parametrize("mean", [torch.zeros(2), torch.tensor([0.0, float("nan"), 0.0])])
def test_a_mean_that_does_not_fit_is_refused(mean: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"should be \(3,\) and finite"):
        AlphaBatchNorm.from_affine(torch.ones(3), torch.zeros(3), torch.ones(3), mean=mean)


@pytest.mark.parametrize("rubbish", [1e30, float("inf"), float("nan")])
def test_what_stands_on_padding_changes_nothing_else(rubbish: float) -> None:
    norm = AlphaBatchNorm(3, target_weight=0.4, momentum=0.1, dtype=torch.float64)
    other = copy.deepcopy(norm)
    x, mask = tokens(11, 2, 3, 3), torch.tensor([[False, False, True], [False, True, True]])
    assert torch.equal(norm(x, mask)[~mask], other(x.masked_fill(mask[..., None], rubbish), mask)[~mask])
    assert torch.equal(norm.running_mean, other.running_mean)
    assert torch.equal(norm.running_var, other.running_var)


def test_what_stands_on_padding_changes_no_gradient() -> None:
    norm = AlphaBatchNorm(3, target_weight=0.4, dtype=torch.float64)
    x, mask = tokens(11, 2, 3, 3), torch.tensor([[False, False, True], [False, True, True]])
    clean, dirty = x.clone().requires_grad_(), x.masked_fill(mask[..., None], 1e30).requires_grad_()
    for tensor in (clean, dirty):
        norm(tensor, mask)[~mask].square().sum().backward()
    assert clean.grad is not None and dirty.grad is not None
    assert torch.equal(clean.grad, dirty.grad)


@pytest.mark.parametrize("rubbish", [1e30, float("inf"), float("nan")])
def test_moments_have_the_same_gradient_whatever_stands_on_padding(rubbish: float) -> None:
    mask = torch.tensor([[False, False, True], [False, True, True]])[..., None]
    otherwise = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    gradients = []
    for number in (0.0, rubbish):
        x = tokens(19, 2, 3, 3).masked_fill(mask, number).requires_grad_()
        mean, variance = token_moments(x, 2, counted=~mask, otherwise=otherwise)
        (mean * tokens(20, 3) + variance * tokens(21, 3)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("shape", [(1, 3), (4, 3)])
def test_constant_channels_and_single_tokens_stay_finite(shape: tuple[int, int]) -> None:
    norm = AlphaBatchNorm(3, target_weight=1, dtype=torch.float64)
    x = torch.zeros(shape, dtype=torch.float64).requires_grad_()
    y = norm(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()


def test_halves_are_squared_as_floats() -> None:
    norm = AlphaBatchNorm(1, target_weight=1)
    y = norm(torch.tensor([[-300.0], [300.0], [0.0]], dtype=torch.float16))
    assert y.dtype == torch.float16
    torch.testing.assert_close(
        y.flatten(), torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float16), rtol=0, atol=1e-3
    )  # float16


def test_after_settling_the_target_is_forgotten_and_nothing_moves() -> None:
    source = source_norm(12)
    norm = AlphaBatchNorm.from_batch_norm(source, 0.5).train()
    norm.momentum = 0.1
    norm.settle()
    x = tokens(12, 4, 3, 2, 2)
    torch.testing.assert_close(norm(x), source(x), rtol=1e-13, atol=1e-14)  # the same, in another order
    assert norm.running_mean.equal(source_norm(12).running_mean)  # type: ignore[arg-type]  # it tracks statistics


def test_while_the_batch_has_a_share_it_is_no_affine_map() -> None:
    with pytest.raises(UserError, match=r"target_weight=0\.2"):
        AlphaBatchNorm(3, target_weight=0.2).frozen_affine()


def test_one_token_is_no_target() -> None:
    with pytest.raises(UserError, match="Fewer than two"):
        AlphaBatchNorm(3).freeze_on([torch.ones(1, 3)])


@pytest.mark.parametrize("settles", [True, False])
def test_what_is_settled_is_not_frozen_again(settles: bool) -> None:
    norm = AlphaBatchNorm(3, target_weight=0.3, dtype=torch.float64)
    if settles:
        norm.settle()
    else:
        norm.freeze_on([tokens(17, 4, 3)])
    before = norm.running_mean.clone()
    with pytest.raises(UserError, match="is settled"):
        norm.freeze_on([tokens(18, 4, 3)])
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_target_that_is_not_finite_is_refused(value: float) -> None:
    norm, x = AlphaBatchNorm(3), torch.ones(4, 3)
    x[2, 1] = value
    with pytest.raises(UserError, match="NaN or an infinity"):
        norm.freeze_on([torch.ones(4, 3), x])
    assert norm.running_mean.isfinite().all() and not norm.is_settled
    norm.freeze_on([(x, torch.tensor([False, False, True, False]))])
    assert norm.is_settled


def test_batch_norms_without_statistics_are_refused() -> None:
    with pytest.raises(UserError, match="track_running_stats"):
        AlphaBatchNorm.from_batch_norm(nn.BatchNorm1d(3, track_running_stats=False), 0.1)


def test_target_weight_is_a_share() -> None:
    with pytest.raises(UserError, match=r"target_weight=1\.5"):
        AlphaBatchNorm(3, target_weight=1.5)
