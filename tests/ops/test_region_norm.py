import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops import LearnedRegionNorm, RegionNorm
from tests.ops.test_power_norm import tokens


def published(x: Tensor, foreground: Tensor) -> Tensor:
    """Both regions as published: the rest filled with the mean, a batch norm, and its scale mended."""
    total = torch.zeros_like(x)
    for inside in (foreground, 1 - foreground):
        size = inside.sum().clamp(min=1)
        mean = (x * inside).sum((0, 2, 3)) / size
        filled = x * inside + (1 - inside) * mean[:, None, None]
        normal = nn.functional.batch_norm(filled, None, None, training=True)
        total = total + normal * (size / inside.numel()).sqrt()
    return total


def random_norm(seed: int) -> RegionNorm:
    torch.manual_seed(seed)
    norm = RegionNorm(3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def images(seed: int) -> tuple[Tensor, Tensor]:
    """Images with a foreground that is brighter and more varied than the rest."""
    mask = (tokens(seed, 2, 1, 5, 6) > 0.3).double()
    return tokens(seed + 1, 2, 3, 5, 6) * (1 + 2 * mask) + 4 * mask, mask


def test_filling_and_a_batch_norm_are_the_masked_mean_and_variance() -> None:
    x, mask = images(1)
    torch.testing.assert_close(
        RegionNorm(3, dtype=torch.float64)(x, mask), published(x, mask), rtol=0, atol=1e-12
    )  # sums of 60


def test_eps_is_scaled_by_the_share_of_the_region() -> None:
    x, mask = images(2)
    x = x * 1e-3
    inside = mask.bool().expand_as(x)
    found = RegionNorm(3, dtype=torch.float64)(x, mask)
    for c in range(3):
        pixels = x[:, c][inside[:, c]]
        var = pixels.var(correction=0) + 1e-5 * mask.numel() / mask.sum()
        expected = (pixels - pixels.mean()) / var.sqrt()
        torch.testing.assert_close(
            found[:, c][inside[:, c]], expected, rtol=1e-10, atol=1e-12
        )  # small differences of sums


def test_gains_are_of_the_region_and_shifts_of_both() -> None:
    norm, (x, mask) = random_norm(3), images(3)
    z = published(x, mask)
    gain = torch.where(mask.bool(), norm.foreground_gamma[:, None, None], norm.background_gamma[:, None, None])
    shift = (norm.foreground_beta + norm.background_beta)[:, None, None]
    torch.testing.assert_close(norm(x, mask.bool()), (1 + gain) * z + shift, rtol=0, atol=1e-12)  # sums of 60


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_region_stays_finite(value: float) -> None:
    norm = random_norm(4)
    x = images(4)[0].requires_grad_()
    mask = torch.full((2, 1, 5, 6), value, dtype=torch.float64)
    y = norm(x, mask)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    gain = norm.foreground_gamma if value else norm.background_gamma
    whole = nn.functional.batch_norm(x, None, None, training=True) * (1 + gain[:, None, None])
    shift = (norm.foreground_beta + norm.background_beta)[:, None, None]
    torch.testing.assert_close(y, whole + shift, rtol=0, atol=1e-12)  # sums of 60


def test_gradients_pass_through_the_statistics() -> None:
    norm, (x, mask) = random_norm(5), images(5)
    assert torch.autograd.gradcheck(lambda value: norm(value, mask), x[:, :, :3, :3].clone().requires_grad_())


def test_a_mask_of_another_size_is_resized_to_nearest_neighbours() -> None:
    norm, (x, _) = random_norm(6), images(6)
    large = tokens(7, 2, 1, 10, 12) > 0
    assert torch.equal(norm(x, large), norm(x, large[:, :, ::2, ::2]))


def test_statistics_are_of_the_batch_in_eval_too() -> None:
    norm, (x, mask) = random_norm(8).eval(), images(8)
    assert (norm(x, mask)[:1] - norm(x[:1], mask[:1])).abs().max() > 1e-3


def test_halves_are_squared_as_floats() -> None:
    x = torch.tensor([-300.0, 300.0, 300.0, -300.0], dtype=torch.float16).reshape(1, 1, 2, 2)
    y = RegionNorm(1)(x, torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(y, x / 300, rtol=0, atol=1e-3)  # float16


def test_state_dicts_have_the_published_names() -> None:
    expected = {"foreground_gamma", "foreground_beta", "background_gamma", "background_beta"}
    assert set(RegionNorm(3).state_dict()) == expected
    shapes = {name: tuple(value.shape) for name, value in LearnedRegionNorm(3).state_dict().items()}
    assert shapes == {
        "sa.conv1.weight": (1, 2, 7, 7), "sa.gamma_conv.weight": (1, 1, 7, 7), "sa.gamma_conv.bias": (1,),
        "sa.beta_conv.weight": (1, 1, 7, 7), "sa.beta_conv.bias": (1,),
    }  # fmt: skip


def test_the_learned_form_finds_its_region_and_its_gain_and_shift() -> None:
    torch.manual_seed(9)
    norm = LearnedRegionNorm(3, threshold=0.55, dtype=torch.float64)
    state = norm.state_dict()
    x = images(9)[0]

    def convolved(value: Tensor, name: str) -> Tensor:
        return nn.functional.conv2d(value, state[f"sa.{name}.weight"], state.get(f"sa.{name}.bias"), padding=3)

    importance = convolved(torch.stack([x.mean(1), x.max(1).values], 1), "conv1").sigmoid()
    mask = (importance >= 0.55).double()
    assert 0 < mask.mean() < 1
    expected = published(x, mask) * (1 + convolved(importance, "gamma_conv")) + convolved(importance, "beta_conv")
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)  # sums of 98


@pytest.mark.parametrize(
    ("shape", "mask_shape", "words"),
    [
        ((2, 4, 5, 6), (2, 1, 5, 6), "3 channels"),
        ((2, 3, 5), (2, 1, 5, 6), "height"),
        ((2, 3, 5, 6), (2, 5, 6), "mask"),
    ],
)
def test_wrong_shapes_are_named(shape: tuple[int, ...], mask_shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RegionNorm(3)(torch.zeros(shape), torch.zeros(mask_shape))
