import copy

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops import UnifiedNorm
from tests.ops.agreement import dead_channel_problems, largest_difference, prints_as
from tests.ops.test_power_norm import fold_difference, tokens
from tests.ops.unified_by_hand import UnifiedByHand

# Inputs 1 to 6, equal in all channels, window 4, no warm-up; written with the published precision.
OUTPUTS = ("1", "1", "1", "1", "1.51069", "1.37745")
RUNNING = ("1", "1.3", "2.07", "3.463", "4.21214", "5.6883")


def vector_problems() -> list[str]:
    """What differs from the known sequences of y and running_var, in any printed digit."""
    norm = UnifiedNorm(2, warmup_iters=0, dtype=torch.float64)
    problems = []
    for t, (output, running) in enumerate(zip(OUTPUTS, RUNNING, strict=True), start=1):
        y = norm(torch.full((3, 2), float(t), dtype=torch.float64))
        for found, wanted in ((y[0, 0].item(), output), (norm.running_var[0].item(), running)):
            if not prints_as(found, wanted):
                problems.append(f"iteration {t}: {found:.7f}, not {wanted}")
    return problems


def random_norm(seed: int, *, filters: bool = False, warmup_iters: int = 0, window_size: int = 4) -> UnifiedNorm:
    torch.manual_seed(seed)
    norm = UnifiedNorm(
        3, window_size=window_size, warmup_iters=warmup_iters, outlier_filtration=filters, dtype=torch.float64
    )
    with torch.no_grad():
        # The second gain is negative: signs must survive folding.
        norm.weight.copy_(torch.randn(3, dtype=torch.float64).abs() + 0.5)
        norm.weight[1] *= -1
        norm.bias.normal_()
        norm.running_var.uniform_(0.2, 3)
    return norm


def batch(seed: int, factor: float = 1) -> Tensor:
    """Five tokens; the channels' scales are near each other, so that the filtration's threshold is low."""
    return factor * (1 + 0.1 * tokens(seed, 5, 3))


def backward_difference(*, padding: bool = False, filters: bool = False, late: bool = False) -> float:
    """Largest difference from the published iteration by hand: warm-up, window, outliers, compensated gradients."""
    norm = random_norm(1, filters=filters, warmup_iters=3)
    by_hand = UnifiedByHand(
        norm.weight.tolist(), norm.bias.tolist(), warmup_iters=3, filters=filters, running=norm.running_var.tolist()
    )
    if late:
        norm.iters.fill_(1000)
        norm.buffer_x2.uniform_(0.5, 2)
        norm.buffer_gz.normal_()
        by_hand.t, by_hand.squares, by_hand.products = 1000, norm.buffer_x2.tolist(), norm.buffer_gz.tolist()
    mask = torch.tensor([False, True, False, False, True]) if padding else None
    batches = [(batch(t, 50 if t == 6 else 1 + 0.2 * (t % 3)), mask) for t in range(9)]
    difference = largest_difference(norm, by_hand, batches)
    assert norm.skip_counter.item() == by_hand.skipped
    assert (by_hand.skipped > 0) == filters
    pairs = (
        (norm.running_var, by_hand.running), (norm.ema_gz, by_hand.ema),
        (norm.buffer_x2, by_hand.squares), (norm.buffer_gz, by_hand.products),
    )  # fmt: skip
    for buffer, numbers in pairs:
        wanted = torch.tensor(numbers, dtype=torch.float64)
        difference = max(difference, ((buffer - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item())
    return difference


def test_outputs_and_running_var_are_the_known_ones_in_every_printed_digit() -> None:
    assert vector_problems() == []


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("filters", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_forward_and_backward_are_the_published_formula(padding: bool, filters: bool, late: bool) -> None:
    # Sums of 5 products and a fourth root, in float64.
    assert backward_difference(padding=padding, filters=filters, late=late) < 1e-12


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_layer_takes_the_norm_in(has_bias: bool) -> None:
    assert fold_difference(random_norm(2), 3, has_bias=has_bias) < 1e-12  # sums of 3 products, in float64


def test_a_skipped_outlier_does_not_change_eval() -> None:
    norm = random_norm(3, filters=True)
    for t in range(8):
        norm(batch(t))
    before, skipped = norm.running_var.clone(), norm.skip_counter.item()
    norm(batch(9, 50))
    assert norm.skip_counter.item() == skipped + 1
    assert torch.equal(norm.running_var, before)


def test_without_filtration_the_same_batch_changes_eval() -> None:
    norm = random_norm(3)
    for t in range(8):
        norm(batch(t))
    before = norm.running_var.clone()
    norm(batch(9, 50))
    assert (norm.running_var > 1.5 * before).all()


def test_what_lasts_is_no_outlier() -> None:
    norm = random_norm(4, filters=True)
    for t in range(8):
        norm(batch(t))
    for t in range(100):
        norm(batch(t, 50))
    torch.testing.assert_close(norm.running_var.sqrt(), torch.full_like(norm.running_var, 50), rtol=0.05, atol=0)


def constant_batches(norm: UnifiedNorm, *values: float) -> list[int]:
    """How many steps were skipped after each batch of a constant."""
    skipped = []
    for value in values:
        norm(torch.full((5, 3), value, dtype=torch.float64))
        skipped.append(int(norm.skip_counter))
    return skipped


@pytest.mark.parametrize("value", [1.0, 0.7, 123.4])
def test_after_statistics_without_any_spread_an_outlier_is_skipped(value: float) -> None:
    norm = UnifiedNorm(3, warmup_iters=0, outlier_filtration=True, dtype=torch.float64)
    assert constant_batches(norm, *[value] * 12) == [0] * 12
    before = norm.running_var.clone()
    assert constant_batches(norm, 50 * value) == [1]
    assert torch.equal(norm.running_var, before)


def test_right_after_from_affine_an_outlier_is_skipped() -> None:
    mean_square = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    norm = UnifiedNorm.from_affine(
        torch.ones_like(mean_square), torch.zeros_like(mean_square), mean_square, outlier_filtration=True
    )
    assert constant_batches(norm, 50) == [1]
    assert torch.equal(norm.running_var, mean_square)


def test_the_fourth_outlier_in_a_row_is_accepted_with_a_window_of_four() -> None:
    norm = UnifiedNorm(3, warmup_iters=0, outlier_filtration=True, dtype=torch.float64)
    constant_batches(norm, *[1.0] * 12)
    assert constant_batches(norm, 50, 50, 1, 50, 50, 50, 50) == [1, 2, 2, 3, 4, 5, 5]
    wanted = torch.full_like(norm.running_var, 0.9 + 0.1 * 2500**0.25)
    torch.testing.assert_close(norm.running_var, wanted, rtol=1e-14, atol=0)  # a fourth root


def test_a_batch_of_zeros_in_a_channel_does_not_blow_up_the_next_ones() -> None:
    norm = random_norm(5)
    for t in range(20):
        x = batch(t)
        if t == 10:
            x[:, 1] = 0
        y = norm(x)
        assert ((y - norm.bias) / norm.weight).abs().max() < 3  # the inputs lie within 1.4 times their root mean square


def test_a_channel_of_zeros_stays_finite() -> None:
    assert dead_channel_problems(UnifiedNorm(3, warmup_iters=2, outlier_filtration=True)) == []


@pytest.mark.parametrize("rubbish", [1e30, float("inf"), float("nan")])
def test_what_stands_on_padding_leaves_the_statistics_alone(rubbish: float) -> None:
    norm = random_norm(7, filters=True)
    other = copy.deepcopy(norm)
    x, mask = tokens(7, 2, 3, 3), torch.tensor([[False, False, True], [False, True, True]])
    norm(x, mask)
    other(x.masked_fill(mask[..., None], rubbish), mask)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), other.buffers(), strict=True))


def test_a_window_of_one_is_the_plain_quadratic_mean_with_its_gradient() -> None:
    norm = random_norm(8, window_size=1)
    x = batch(8).requires_grad_()
    plain = batch(8).requires_grad_()
    gradient = tokens(8, 5, 3)
    norm(x).backward(gradient)
    y = norm.weight.detach() * plain / (plain.square().mean(0) + norm.eps).sqrt() + norm.bias.detach()
    y.backward(gradient)
    assert x.grad is not None and plain.grad is not None
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-12, atol=1e-14)  # sums of 5 products
    assert norm.skip_counter.item() == 0
    assert not torch.equal(norm.running_var, random_norm(8, window_size=1).running_var)


def test_from_affine_is_the_affine_map_in_eval_and_on_the_calibrated_batch() -> None:
    scale, shift, x = tokens(9, 3), tokens(10, 3), tokens(11, 2, 4, 3)
    x[..., 1] = 0
    norm = UnifiedNorm.from_affine(scale, shift, x.square().mean((0, 1)))
    expected = scale * x + shift
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-13, atol=1e-13)  # a root, its inverse, one product
    torch.testing.assert_close(norm.train()(x), expected, rtol=1e-12, atol=1e-12)  # a fourth root besides


def test_the_first_step_on_another_batch_is_off_by_its_place_in_the_window() -> None:
    mean_square = torch.full((3,), 4.0, dtype=torch.float64)
    norm = UnifiedNorm.from_affine(torch.ones_like(mean_square), torch.zeros_like(mean_square), mean_square, eps=0)
    x = torch.full((2, 3), 4.0, dtype=torch.float64)
    torch.testing.assert_close(norm(x), x * (4 / 16) ** (1 / 8), rtol=1e-14, atol=0)  # one fourth root


def test_after_settling_training_is_eval_with_the_gradients_of_an_affine_map() -> None:
    norm = random_norm(12)
    norm.settle()
    before = copy.deepcopy(norm.state_dict())
    x = batch(12).requires_grad_()
    y = norm.train()(x)
    y.sum().backward()
    assert torch.equal(y, copy.deepcopy(norm).eval()(x))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, norm.frozen_affine()[0].expand_as(x), rtol=1e-14, atol=0)  # one division
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_restarted_warm_up_normalises_by_the_batch_again() -> None:
    norm = random_norm(13, warmup_iters=10)
    norm.iters.fill_(50)
    norm.buffer_x2.fill_(1)
    norm.restart_warmup()
    x = batch(13, 5)
    z = (norm(x) - norm.bias) / norm.weight
    torch.testing.assert_close(z.square().mean(0), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)  # eps
    assert norm.iters.item() == 1


def test_halves_are_squared_as_floats() -> None:
    norm = UnifiedNorm(2)
    y = norm(torch.full((3, 2), 300.0, dtype=torch.float16))
    assert y.dtype == torch.float16
    # 300 squared is beyond float16; 0.001 is its rounding near 1.
    torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=1e-3)
    assert norm.running_var.isfinite().all()


def test_state_dicts_have_the_published_shapes_and_come_back() -> None:
    state = {
        "weight": tokens(16, 3), "bias": tokens(17, 3), "running_var": tokens(18, 3).square(),
        "ema_gz": tokens(19, 3), "iters": torch.tensor([7]), "skip_counter": torch.tensor([2]),
        "buffer_x2": tokens(20, 4, 3).square(), "buffer_gz": tokens(21, 2, 3),
    }  # fmt: skip
    norm = UnifiedNorm(3, window_size=(4, 2), dtype=torch.float64)
    norm.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())
    assert norm.iters.dtype == norm.skip_counter.dtype == torch.int64


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(UserError, match="window_size"):
        UnifiedNorm(3, window_size=(4, 0))
