import copy

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops import PowerNorm, UnifiedNorm
from tests.ops.agreement import dead_channel_problems, largest_difference, prints_as
from tests.ops.power_by_hand import PowerByHand

# phi after inputs 1, 2, 3, ... that are equal in all channels, and outputs; written with the published precision.
VECTORS = (
    (10, (1.0, 2.65, 5.19), ()),
    (3, (1.0, 2.65, 3.285, 4.5565, 6.60085), ("1", "1", "1", "2.20695", "2.34236")),
)


def vector_problems() -> list[str]:
    """What differs from the known sequences of phi and y, in any printed digit."""
    problems = []
    for warmup_iters, phis, outputs in VECTORS:
        norm = PowerNorm(2, warmup_iters=warmup_iters, groups=None, dtype=torch.float64)
        found = [norm(torch.full((3, 2), t, dtype=torch.float64))[0, 0].item() for t in range(1, len(outputs) + 1)]
        problems += [f"y {a:.7f}, not {b}" for a, b in zip(found, outputs, strict=True) if not prints_as(a, b)]
        norm = PowerNorm(2, warmup_iters=warmup_iters, groups=None, dtype=torch.float64)
        for t, phi in enumerate(phis, start=1):
            norm(torch.full((3, 2), float(t), dtype=torch.float64))
            # Two units in the last place: the decimal numbers and their products are no binary fractions.
            if abs(norm.running_phi[0, 0, 0, 0].item() - phi) > 2e-15 * phi:
                problems.append(f"phi {norm.running_phi[0, 0, 0, 0].item()!r}, not {phi}")
    return problems


def random_norm(seed: int, *, channels: int = 4, warmup_iters: int = 2, groups: int | None = None) -> PowerNorm:
    torch.manual_seed(seed)
    norm = PowerNorm(channels, warmup_iters=warmup_iters, groups=groups, dtype=torch.float64)
    with torch.no_grad():
        # The second gain is negative: signs must survive folding.
        norm.weight.copy_(torch.randn(channels, dtype=torch.float64).abs() + 0.5)
        norm.weight[1] *= -1
        norm.bias.normal_()
        norm.running_phi.uniform_(0.2, 3)
    return norm


def backward_difference(padding: bool) -> float:
    """Largest difference from the published iteration by hand, over the warm-up and beyond it."""
    norm = random_norm(1)
    by_hand = PowerByHand(
        norm.weight.tolist(), norm.bias.tolist(), warmup_iters=2, phi=norm.running_phi.flatten().tolist()
    )
    mask = torch.tensor([False, True, False, False, True]) if padding else None
    batches = [(torch.randn(5, 4, dtype=torch.float64), mask) for _ in range(5)]
    difference = largest_difference(norm, by_hand, batches)
    for buffer, numbers in ((norm.running_phi, by_hand.phi), (norm.ema_gz, by_hand.nu)):
        difference = max(difference, (buffer.flatten() - torch.tensor(numbers, dtype=torch.float64)).abs().max().item())
    return difference


def fold_difference(norm: PowerNorm | UnifiedNorm, channels: int, *, has_bias: bool) -> float:
    """Largest difference of Linear(norm(x)) in eval mode and one Linear with the norm's scale and shift in it."""
    linear = nn.Linear(channels, 5, bias=has_bias, dtype=torch.float64)
    scale, shift = norm.frozen_affine()
    x = torch.randn(3, 7, channels, dtype=torch.float64)
    weight = linear.weight * scale
    bias = linear.weight @ shift + (linear.bias if has_bias else 0)
    return (linear(norm.eval()(x)) - nn.functional.linear(x, weight, bias)).abs().max().item()


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_phi_and_outputs_are_the_known_ones_in_every_printed_digit() -> None:
    assert vector_problems() == []


@pytest.mark.parametrize("padding", [False, True])
def test_forward_and_backward_are_the_published_formula(padding: bool) -> None:
    assert backward_difference(padding) < 1e-12  # sums of 5 products, in float64


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_layer_takes_the_norm_in(has_bias: bool) -> None:
    assert fold_difference(random_norm(2), 4, has_bias=has_bias) < 1e-12  # sums of 4 products, in float64


def test_with_group_scaling_eval_ignores_the_scale_of_a_token() -> None:
    norm = random_norm(3, channels=6, groups=2).eval()
    x = tokens(3, 2, 5, 6)
    torch.testing.assert_close(norm(2 * x), norm(x), rtol=0, atol=1e-3)  # up to the 1e-5 beside the mean square
    assert (norm(2 * x) - norm(x)).abs().max() > 0


def test_without_group_scaling_eval_is_affine() -> None:
    norm = random_norm(4).eval()
    a, b = tokens(4, 2, 5, 4), tokens(5, 2, 5, 4)
    assert (norm(a + b) - norm(a) - norm(b) + norm(0 * a)).abs().max() < 1e-13  # four roundings


def test_each_group_is_scaled_by_itself() -> None:
    norm = PowerNorm(4, groups=2, dtype=torch.float64).eval()
    x = tokens(6, 3, 4)
    scaled = [part / (part.square().mean(1, keepdim=True) + 1e-5).sqrt() for part in (x[:, :2], x[:, 2:])]
    expected = torch.cat(scaled, 1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(norm(x), expected, rtol=1e-14, atol=1e-14)  # the same sums in another order


@pytest.mark.parametrize("rubbish", [1e30, float("inf"), float("nan")])
def test_what_stands_on_padding_leaves_phi_alone(rubbish: float) -> None:
    norm = random_norm(7)
    other = copy.deepcopy(norm)
    x, mask = tokens(7, 2, 3, 4), torch.tensor([[False, False, True], [False, True, True]])
    norm(x, mask)
    other(x.masked_fill(mask[..., None], rubbish), mask)
    assert torch.equal(norm.running_phi, other.running_phi)
    short = random_norm(7)
    short(x[~mask])
    torch.testing.assert_close(norm.running_phi, short.running_phi, rtol=1e-15, atol=0)  # the same three squares


def test_a_batch_of_padding_alone_leaves_phi_finite() -> None:
    norm = random_norm(8)
    assert norm(tokens(8, 2, 3, 4), torch.ones(2, 3, dtype=torch.bool)).isfinite().all()
    assert norm.running_phi.isfinite().all()


def test_a_channel_of_zeros_stays_finite() -> None:
    assert dead_channel_problems(PowerNorm(3, groups=None, warmup_iters=2)) == []


def test_from_affine_is_the_affine_map_in_eval_and_at_the_first_step() -> None:
    scale, shift, mean_square = tokens(9, 4), tokens(10, 4), tokens(11, 4).square()
    mean_square[2] = 0
    norm = PowerNorm.from_affine(scale, shift, mean_square)
    x = tokens(12, 2, 3, 4)
    expected = scale * x + shift
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-13, atol=1e-13)  # a root, its inverse, one product
    torch.testing.assert_close(norm.train()(x), expected, rtol=1e-13, atol=1e-13)  # the same
    assert torch.equal(PowerNorm.from_affine(scale, shift, mean_square).running_phi.flatten(), mean_square)


def test_after_settling_training_is_eval_with_the_gradients_of_an_affine_map() -> None:
    norm = random_norm(13)
    norm.settle()
    before = copy.deepcopy(norm.state_dict())
    x = tokens(13, 2, 3, 4).requires_grad_()
    y = norm.train()(x)
    y.sum().backward()
    assert torch.equal(y, copy.deepcopy(norm).eval()(x))
    assert x.grad is not None
    scale, _ = norm.frozen_affine()
    torch.testing.assert_close(x.grad, scale.expand_as(x), rtol=1e-14, atol=0)  # one division
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_channels_may_lie_on_any_axis_of_a_view() -> None:
    norm, images = random_norm(14), random_norm(14)
    images.channel_axis = 1
    x = tokens(14, 2, 3, 5, 4)
    mask = tokens(15, 2, 3, 5) > 0
    assert torch.equal(images(x.movedim(-1, 1), mask).movedim(1, -1), norm(x, mask))
    # The same squares, summed in another order.
    torch.testing.assert_close(images.running_phi, norm.running_phi, rtol=1e-14, atol=0)


def test_halves_are_squared_as_floats() -> None:
    norm = PowerNorm(2, groups=None)
    y = norm(torch.full((3, 2), 300.0, dtype=torch.float16))
    assert y.dtype == torch.float16
    # 300 squared is beyond float16; 0.001 is its rounding near 1.
    torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=1e-3)
    assert norm.running_phi.isfinite().all()


def test_state_dicts_have_the_published_shapes_and_come_back() -> None:
    state = {
        "weight": tokens(16, 3), "bias": tokens(17, 3), "running_phi": tokens(18, 1, 3, 1, 1).square(),
        "ema_gz": tokens(19, 1, 3, 1, 1), "iters": torch.tensor([7]),
    }  # fmt: skip
    norm = PowerNorm(3, dtype=torch.float64)
    norm.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())
    assert norm.iters.dtype == torch.int64


def test_group_scaling_is_no_affine_map() -> None:
    with pytest.raises(UserError, match="groups=2"):
        PowerNorm(4, groups=2).frozen_affine()


@pytest.mark.parametrize(
    ("shape", "mask_shape", "words"),
    [((2, 3, 5), None, "channel_axis=-1"), ((2, 3, 4), (3, 2), "pad_mask"), ((), None, "channel_axis=-1")],
)
def test_wrong_shapes_are_named(shape: tuple[int, ...], mask_shape: tuple[int, ...] | None, words: str) -> None:
    mask = None if mask_shape is None else torch.zeros(mask_shape, dtype=torch.bool)
    with pytest.raises(UserError, match=words):
        PowerNorm(4)(torch.zeros(shape), mask)


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(UserError, match="groups=3"):
        PowerNorm(4, groups=3)


@pytest.mark.parametrize("mean_square", [torch.tensor([1.0, -1.0]), torch.tensor([1.0, float("nan")]), torch.ones(3)])
def test_from_affine_refuses_what_is_no_mean_square(mean_square: Tensor) -> None:
    with pytest.raises(UserError, match="mean_square"):
        PowerNorm.from_affine(torch.ones(2), torch.ones(2), mean_square)
