import pytest
import torch
from torch import nn

from flowopt.errors import UserError
from flowopt.ops import FrozenNorm
from tests.ops.test_power_norm import tokens


def random_norm(seed: int, subtracts_mean: bool) -> FrozenNorm:
    torch.manual_seed(seed)
    norm = FrozenNorm(4, subtracts_mean=subtracts_mean, sigma=1.7, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


@pytest.mark.parametrize("subtracts_mean", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_layer_takes_the_norm_in(subtracts_mean: bool, has_bias: bool) -> None:
    norm = random_norm(1, subtracts_mean)
    linear = nn.Linear(4, 5, bias=has_bias, dtype=torch.float64)
    matrix, shift = norm.frozen_linear()
    x = tokens(1, 2, 3, 4)
    folded = nn.functional.linear(x, linear.weight @ matrix, linear.weight @ shift + (linear.bias if has_bias else 0))
    assert (linear(norm(x)) - folded).abs().max() < 1e-12  # sums of 4 products, in float64


def test_the_calibrated_sigma_is_the_nearest_to_a_layer_norm() -> None:
    x = tokens(2, 3, 50, 4) * tokens(3, 3, 50, 1).exp()
    exact = nn.functional.layer_norm(x, (4,), eps=0.01)
    norm = FrozenNorm(4, dtype=torch.float64)
    norm.calibrate(x, eps=0.01)
    best = norm.sigma.clone()

    def error(sigma: float) -> float:
        norm.sigma.fill_(sigma)
        return (norm(x) - exact).square().mean().item()

    assert error(best.item()) < min(error(0.99 * best.item()), error(1.01 * best.item()))


def test_without_eps_sigma_is_the_ratio_of_the_first_two_moments() -> None:
    x = tokens(4, 2, 5, 4)
    norm = FrozenNorm(4, dtype=torch.float64)
    norm.calibrate([x[:1], x[1:]], eps=0)
    s = x.std(-1, correction=0)
    torch.testing.assert_close(norm.sigma, s.square().mean() / s.mean(), rtol=1e-14, atol=0)  # the same ten roots


def test_an_rms_norm_is_calibrated_without_the_mean() -> None:
    x = tokens(5, 2, 5, 4) + 3
    norm = FrozenNorm(4, subtracts_mean=False, dtype=torch.float64)
    norm.calibrate([x], eps=0)
    s = x.square().mean(-1).sqrt()
    torch.testing.assert_close(norm.sigma, s.square().mean() / s.mean(), rtol=1e-14, atol=0)  # the same ten roots


def test_padding_does_not_enter_sigma() -> None:
    x, mask = tokens(6, 2, 3, 4), torch.tensor([[False, False, True], [False, True, True]])
    norm, short = FrozenNorm(4, dtype=torch.float64), FrozenNorm(4, dtype=torch.float64)
    norm.calibrate([(x.masked_fill(mask[..., None], float("nan")), mask)])
    short.calibrate([x[~mask]])
    torch.testing.assert_close(norm.sigma, short.sigma, rtol=1e-15, atol=0)  # the same three roots


def test_from_affine_is_the_affine_map() -> None:
    scale, shift, mean_square = tokens(7, 4), tokens(8, 4), tokens(9, 4).square()
    mean_square[2] = 0
    norm = FrozenNorm.from_affine(scale, shift, mean_square)
    x = tokens(10, 2, 3, 4)
    for found in (norm.eval()(x), norm.train()(x)):
        torch.testing.assert_close(found, scale * x + shift, rtol=1e-14, atol=1e-14)  # one product, one quotient
    torch.testing.assert_close(norm.frozen_affine(), (scale, shift), rtol=1e-15, atol=0)  # the same


def test_channels_that_are_all_zero_stay_finite() -> None:
    norm = FrozenNorm.from_affine(torch.ones(2), torch.zeros(2), torch.zeros(2))
    assert norm(torch.zeros(3, 2)).isfinite().all()


def test_channels_may_lie_on_any_axis() -> None:
    norm, images = random_norm(11, True), random_norm(11, True)
    images.channel_axis = 1
    x = tokens(11, 2, 3, 5, 4)
    found = images(x.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(found, norm(x), rtol=1e-14, atol=1e-15)  # means of 4


def test_state_dicts_come_back() -> None:
    norm = FrozenNorm(4, dtype=torch.float64)
    norm.load_state_dict(random_norm(12, True).state_dict())
    assert norm.sigma.item() == 1.7


def test_a_norm_that_subtracts_the_mean_is_no_affine_map_of_each_channel() -> None:
    with pytest.raises(UserError, match="subtracts the mean"):
        random_norm(13, True).frozen_affine()


def test_batches_that_measure_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="no token"):
        FrozenNorm(4).calibrate([torch.zeros(2, 3, 4)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("subtracts_mean", [False, True])
def test_one_number_that_is_not_finite_among_the_batches_is_refused(value: float, subtracts_mean: bool) -> None:
    norm, x = FrozenNorm(4, subtracts_mean=subtracts_mean, sigma=1.7, dtype=torch.float64), tokens(14, 2, 3, 4)
    x[0, 1, 2] = value
    with pytest.raises(UserError, match="without a finite standard deviation"):
        norm.calibrate([tokens(15, 2, 3, 4), x])
    assert norm.sigma.item() == 1.7


@pytest.mark.parametrize("mean_square", [1e-18, 1e-6, 1e12])
def test_in_float16_the_affine_map_of_any_mean_square_is_finite(mean_square: float) -> None:
    scale, shift = tokens(16, 4).half(), tokens(17, 4).half()
    norm = FrozenNorm.from_affine(scale, shift, torch.full((4,), mean_square))
    found = norm.frozen_affine()
    # Half a unit in the last place of the weight.
    torch.testing.assert_close(found, (scale.double(), shift.double()), rtol=1e-3, atol=0)
    x = tokens(18, 2, 4).half()
    # Likewise of the quotient and the result, which may cancel.
    torch.testing.assert_close(norm(x), scale * x + shift, rtol=3e-3, atol=3e-3)


def test_a_calibrated_sigma_below_the_dtype_s_numbers_is_not_zero() -> None:
    norm = FrozenNorm(4, dtype=torch.float16)
    norm.calibrate([1e-9 * tokens(19, 2, 3, 4)], eps=0)
    assert norm.sigma.item() == torch.finfo(torch.float16).tiny


@pytest.mark.parametrize(("sigma", "dtype"), [(0, None), (1e-9, torch.float16), (1e6, torch.float16)])
def test_sigma_must_be_positive_and_finite_as_it_is_stored(sigma: float, dtype: torch.dtype | None) -> None:
    with pytest.raises(UserError, match="sigma"):
        FrozenNorm(4, sigma=sigma, dtype=dtype)
