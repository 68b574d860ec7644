from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import norm_sites
from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.recovery.calibrate import calibrate
from tests.passes.programs import canonical, normal, randomised

WIDTH = 6
Batches = list[Mapping[str, Tensor]]


class Alone(nn.Module):
    """A norm alone, of x."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Any:
        return self.norm(x)


class Masked(nn.Module):
    """A function of parts, of x and a mask of its tokens."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.function(self.parts, x, mask)


def captured(module: nn.Module, *inputs: Tensor, **options: Any) -> Program:
    return canonical(capture(randomised(module.double()), inputs, **options))


def vectors(*shape: int, seed: int = 0) -> Tensor:
    """Vectors of different lengths, about a mean."""
    lengths = 0.5 + normal(*shape[:-1], 1, seed=seed + 1).abs()
    return (0.3 + normal(*shape, seed=seed)).double() * lengths.double()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "rms": lambda: nn.RMSNorm(WIDTH, eps=1e-3),
    "bare rms": lambda: nn.RMSNorm(WIDTH, eps=1e-12, elementwise_affine=False),
    "layer": lambda: nn.LayerNorm(WIDTH),
    "batch": lambda: nn.BatchNorm1d(WIDTH),
    "group": lambda: nn.GroupNorm(2, WIDTH),
}


@cache
def alone(kind: str) -> tuple[Any, Program]:
    """A norm of that kind, and its program for any number of samples and tokens: captured once."""
    norm = NORMS[kind]()
    is_last = kind not in ("batch", "group")
    shape = (3, 5, WIDTH) if is_last else (3, WIDTH, 5)
    free = {"x": {0: "batch", 1 if is_last else 2: "tokens"}}
    ranges = {"batch": (1, None), "tokens": (1, None)}
    return norm, captured(Alone(norm), normal(*shape).double(), dynamic=free, dims=ranges)


def fits(kind: str, *batches: Tensor, **options: Any) -> NormFit:
    _, program = alone(kind)
    (found,) = calibrate(program, norm_sites(program), [{"x": x} for x in batches], **options).values()
    return found


def test_a_norm_of_vectors_of_one_length_is_its_frozen_scale() -> None:
    norm, _ = alone("rms")
    x = normal(4, 5, WIDTH).double()
    x = 3.0 * x / x.square().mean(-1, keepdim=True).sqrt()
    found = fits("rms", x)
    # Root, quotient and product in float64.
    torch.testing.assert_close(found.scale * x + found.shift, norm(x), rtol=1e-12, atol=1e-12)
    assert found.score < 1e-7  # the root of what rounding leaves of a difference of ones


def test_the_score_is_the_relative_error_of_the_best_fixed_scale() -> None:
    norm, _ = alone("bare rms")
    x = vectors(3, 50, WIDTH)
    found = fits("bare rms", x)
    wanted = norm(x)
    candidates = torch.linspace(0.5, 2.0, 2001, dtype=torch.float64) * found.sigma
    errors = torch.stack([(wanted - x / c).square().sum() / wanted.square().sum() for c in candidates]).sqrt()
    best = int(errors.argmin())
    assert abs(float(candidates[best]) - found.sigma) <= 1e-3 * found.sigma  # one step of the search
    # The error is flat at its minimum: half a step away it changes by the square of the step.
    assert abs(float(errors[best]) - found.score) <= 1e-6


def test_statistics_are_of_all_batches_together() -> None:
    parts = vectors(2, 7, WIDTH), vectors(5, 7, WIDTH, seed=9)
    apart, together = fits("rms", *parts), fits("rms", torch.cat(parts))
    assert apart.tokens == together.tokens == 49
    for name in ("sigma", "score", "massive_ratio", "mean", "mean_square", "scale", "shift"):
        # Sums of 49 products in float64, in another order.
        torch.testing.assert_close(
            torch.as_tensor(getattr(apart, name)), torch.as_tensor(getattr(together, name)), rtol=1e-12, atol=1e-14
        )
    torch.testing.assert_close(together.mean_square, torch.cat(parts).square().mean((0, 1)), rtol=1e-12, atol=0.0)
    # Sums of 49 numbers about zero.
    torch.testing.assert_close(together.mean, torch.cat(parts).mean((0, 1)), rtol=1e-12, atol=1e-14)


def regressed(x: Tensor, y: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Slope and intercept of y on x for each channel, by a general solver."""
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(x.unbind(axis), y.unbind(axis), strict=True)]
    solved = [torch.linalg.lstsq(torch.stack([a, torch.ones_like(a)], 1), b[:, None]).solution for a, b in pairs]
    return torch.stack([s[0, 0] for s in solved]), torch.stack([s[1, 0] for s in solved])


def test_a_layer_norm_is_fitted_by_regression_of_each_channel() -> None:
    norm, _ = alone("layer")
    x = vectors(3, 20, WIDTH) + 4.0
    found = fits("layer", x[:1], x[1:])
    slope, intercept = regressed(x, norm(x))
    # Normal equations against a factorisation, of numbers near 4.
    torch.testing.assert_close((found.scale, found.shift), (slope, intercept), rtol=1e-9, atol=1e-9)
    sigma = (x.var(-1, correction=0) + norm.eps).sqrt()
    # Sums of 60 squares in float64.
    assert found.sigma == pytest.approx(float(sigma.square().mean() / sigma.mean()), rel=1e-12)


def test_a_constant_channel_keeps_a_finite_scale() -> None:
    norm, _ = alone("layer")
    x = vectors(3, 20, WIDTH)
    x[..., 2] = 1e3
    found = fits("layer", x)
    assert bool(torch.isfinite(found.scale).all())
    wanted = norm(x)[..., 2].mean()
    # An intercept of a constant: the mean of the outputs, of a product near 1e3 cancelled.
    torch.testing.assert_close(found.scale[2] * 1e3 + found.shift[2], wanted, rtol=1e-9, atol=1e-9)


def test_frozen_sigma_of_a_centred_layer_norm_is_gain_over_sigma_and_the_shift() -> None:
    norm, _ = alone("layer")
    x = vectors(3, 20, WIDTH)
    found = fits("layer", x - x.mean(-1, keepdim=True), init="frozen-sigma")
    # A quotient, and a mean of zeros within rounding.
    torch.testing.assert_close(found.scale, norm.weight.detach() / found.sigma, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.shift, norm.bias.detach(), rtol=1e-12, atol=1e-12)


def test_frozen_sigma_takes_off_the_mean_that_all_vectors_have() -> None:
    norm, _ = alone("layer")
    x = vectors(3, 20, WIDTH)
    x = x - x.mean(-1, keepdim=True)
    x = x / x.square().mean(-1, keepdim=True).sqrt() + 5.0
    found = fits("layer", x, init="frozen-sigma")
    # Every vector has the same mean and deviation: a fixed map is all there is. Means near 5 cancel in float64.
    torch.testing.assert_close(found.scale * x + found.shift, norm(x), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_is_its_own_scale_and_shift() -> None:
    norm, _ = alone("batch")
    x = vectors(4, 5, WIDTH).transpose(1, 2)
    found = fits("batch", x)
    # A root and two products in float64.
    torch.testing.assert_close(found.scale[:, None] * x + found.shift[:, None], norm(x), rtol=1e-12, atol=1e-12)
    assert (found.score, found.massive) == (0.0, 0)


def test_figures_of_zeros_are_finite() -> None:
    found = fits("batch", torch.zeros(2, WIDTH, 3, dtype=torch.float64))
    assert (found.sigma, found.massive_ratio, found.score) == (0.0, 0.0, 0.0)


def test_a_group_norm_has_a_deviation_for_each_group() -> None:
    norm, _ = alone("group")
    x = vectors(20, 5, WIDTH).transpose(1, 2) * torch.tensor([1.0, 1, 1, 9, 9, 9]).reshape(-1, 1)
    found = fits("group", x)
    s = (x.reshape(20, 2, -1).var(-1, correction=0) + norm.eps).sqrt()
    squares = 1.0 - s.mean(0).square() / s.square().mean(0)
    # Sums of 20 squares in float64.
    assert found.score == pytest.approx(float(squares.mean().sqrt()), rel=1e-9)
    assert found.tokens == 40
    # Normal equations against a factorisation.
    torch.testing.assert_close((found.scale, found.shift), regressed(x, norm(x), 1), rtol=1e-9, atol=1e-9)


@cache
def masked(kind: str) -> Program:
    module = Masked(lambda m, x, mask: m["norm"](x) * mask[..., None], norm=NORMS[kind]())
    return captured(module, normal(3, 5, WIDTH).double(), torch.ones(3, 5))


def same_fit(one: NormFit, other: NormFit, *, massive: int = 0) -> None:
    assert (one.tokens, one.massive) == (other.tokens, massive)
    for name in ("sigma", "score", "mean", "mean_square", "scale", "shift"):
        values = (torch.as_tensor(getattr(fit, name)) for fit in (one, other))
        torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)  # sums of 15 products, in parts of other sizes


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_padding_leaves_the_fit_as_it_is(kind: str) -> None:
    program = masked(kind)
    x, mask = vectors(3, 5, WIDTH), torch.ones(3, 5)
    mask[0, 3:], mask[2, :1] = 0.0, 0.0
    wild = torch.where(mask[..., None] == 0, 1e6 * normal(3, 5, WIDTH, seed=3).double(), x)
    wild[0, 4] = torch.nan
    zero = torch.where(mask[..., None] == 0, 0.0, x)
    one, other = (
        next(iter(calibrate(program, norm_sites(program), [{"x": v, "mask": mask}], padding="mask").values()))
        for v in (wild, zero)
    )
    same_fit(one, other)
    assert one.tokens == 12


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("is_iterator", [False, True])
def test_massive_activations_leave_the_fit_as_it_is(kind: str, is_iterator: bool) -> None:
    x = vectors(2, 8, WIDTH)
    sunk = torch.cat([x, 1e4 * normal(2, 1, WIDTH, seed=5).double()], 1)

    def batches() -> Iterator[Mapping[str, Tensor]]:
        yield from ({"x": row[None]} for row in sunk)

    _, program = alone(kind)
    given = batches() if is_iterator else list(batches())
    (found,) = calibrate(program, norm_sites(program), given).values()
    same_fit(found, fits(kind, x), massive=2)
    assert found.massive_ratio > 1e3


def test_massive_groups_are_left_out_of_their_channels_alone() -> None:
    norm, _ = alone("group")
    x = vectors(9, 5, WIDTH).transpose(1, 2)
    sunk = x.clone()
    sunk[4, 3:] *= 1e4
    found = fits("group", sunk)
    assert (found.tokens, found.massive) == (17, 1)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    first, second = regressed(x, norm(x), 1), regressed(x[others], norm(x[others]), 1)
    # Normal equations against a factorisation.
    torch.testing.assert_close(found.scale, torch.cat([first[0][:3], second[0][3:]]), rtol=1e-9, atol=1e-9)


def test_values_without_tokens_count_whole() -> None:
    module = Masked(lambda m, x, mask: m["norm"]((x * mask[..., None]).sum(1)), norm=nn.RMSNorm(WIDTH))
    program = captured(module, normal(3, 5, WIDTH).double(), torch.ones(3, 5))
    batch = {"x": vectors(3, 5, WIDTH), "mask": torch.tensor([[1.0, 0, 0, 0, 0]] * 3)}
    (found,) = calibrate(program, norm_sites(program), [batch], padding="mask").values()
    assert found.tokens == 3


def test_tokens_are_found_wherever_they_stand() -> None:
    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        heads = m["heads"](x.unflatten(-1, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(2)
        turned = m["turned"](x.transpose(0, 1)).transpose(0, 1)
        grouped = m["grouped"](x.transpose(1, 2)).transpose(1, 2)
        flat: Tensor = m["flat"](x.flatten(0, 1)) + (heads + turned + grouped).flatten(0, 1)
        return flat * mask.reshape(-1, 1)

    parts = {name: nn.RMSNorm(WIDTH) for name in ("flat", "turned")}
    module = Masked(forward, heads=nn.RMSNorm(3), grouped=nn.GroupNorm(2, WIDTH), **parts)
    free = {"x": {0: "batch", 1: "tokens"}, "mask": {0: "batch", 1: "tokens"}}
    program = captured(module, normal(3, 5, WIDTH).double(), torch.ones(3, 5), dynamic=free)
    x, mask = vectors(2, 4, WIDTH), torch.tensor([[1.0, 1, 1, 0], [0.0, 0, 0, 1]])
    sites = norm_sites(program)
    found = calibrate(program, sites, [{"x": x, "mask": mask}], padding="mask")
    by_part = {str(site.module).rpartition(".")[2]: found[site.name] for site in sites}
    # Two vectors of a token are its heads, two of a sample its groups.
    assert {name: fit.tokens for name, fit in by_part.items()} == {"heads": 8, "turned": 4, "grouped": 4, "flat": 4}
    wanted = x[mask == 1].square().mean(0)
    for name in ("flat", "turned", "grouped"):
        # Sums of four squares in float64.
        torch.testing.assert_close(by_part[name].mean_square, wanted, rtol=1e-12, atol=0.0)


def test_says_which_norm_and_batch_have_a_nan() -> None:
    x = vectors(2, 3, WIDTH)
    broken = x.clone()
    broken[1, 2, 0] = torch.inf
    with pytest.raises(UserError, match=r"batch 1 gives the norm rms_norm a NaN or an infinity"):
        fits("rms", x, broken)


def test_says_that_there_is_no_batch() -> None:
    _, program = alone("rms")
    with pytest.raises(UserError, match="no calibration batch"):
        calibrate(program, norm_sites(program), [])


def test_says_that_all_is_padding() -> None:
    program = masked("rms")
    batch = {"x": vectors(3, 5, WIDTH), "mask": torch.zeros(3, 5)}
    with pytest.raises(UserError, match="no calibration batch has a token"):
        calibrate(program, norm_sites(program), [batch], padding="mask")


@pytest.mark.parametrize("padding", ["x", "missing"])
def test_says_that_padding_names_no_mask(padding: str) -> None:
    program = masked("rms")
    with pytest.raises(UserError, match="is no input of shape"):
        calibrate(program, norm_sites(program), [], padding=padding)
