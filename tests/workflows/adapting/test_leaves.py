"""Modules in the places of norms, and the fits that they are made of."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import NormKind, NormSite, norm_sites
from flowopt.program.capture import capture
from flowopt.workflows.adapting.leaves import leaf_of, trained_fits, uncalibrated, with_live_channels
from tests.passes.programs import Written, canonical, randomised


def _fit(scale: list[float]) -> NormFit:
    random = torch.Generator().manual_seed(0)
    found = torch.tensor(scale, dtype=torch.float64)
    shift, mean, deviation = torch.randn(3, len(scale), generator=random, dtype=torch.float64)
    return NormFit("norm", 9, 0, 0.1, 1.0, 1.0, mean, mean.square() + deviation.square(), found, shift)


def test_a_channel_that_says_nothing_gets_a_scale_that_can_be_divided_by() -> None:
    fit = with_live_channels(_fit([2.0, -0.5, 1e-33, -1e-30, 0.0]))
    least = 2.0 * 2.0**-20
    assert fit.scale.tolist() == [2.0, -0.5, least, -least, least]


def test_scales_of_usual_sizes_stay() -> None:
    fit = _fit([2.0, -0.5, 1e-5])
    assert torch.equal(with_live_channels(fit).scale, fit.scale)


@pytest.mark.parametrize("to", ["power", "unified", "frozen", "batch"])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_leaf_computes_the_map_of_its_fit_until_it_is_trained(to: str, axis: int) -> None:
    fit = _fit([2.0, -0.5, 0.25, 3.0])
    site = NormSite("norm", "x", NormKind.RMS, None, axis, 4, False, None, 0)
    leaf = leaf_of(to, site, fit, torch.float64).eval()
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shape = [1, 1, 1]
    shape[axis] = 4
    expected = x * fit.scale.reshape(shape) + fit.shift.reshape(shape)
    torch.testing.assert_close(leaf(x), expected, rtol=1e-12, atol=1e-12)  # a product, a root and a quotient
    again = trained_fits({"norm": fit}, {"norm": leaf})["norm"]
    torch.testing.assert_close(again.scale, fit.scale, rtol=1e-12, atol=0.0)  # likewise


@pytest.mark.parametrize("to", ["power", "unified", "frozen", "batch"])
def test_a_leaf_that_sees_the_data_of_its_fit_keeps_its_map(to: str) -> None:
    random = torch.Generator().manual_seed(2)
    mean, deviation = torch.linspace(-2, 2, 4, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    square = mean.square() + deviation.square()
    fit = replace(_fit([2.0, -0.5, 0.25, 3.0]), mean=mean, mean_square=square)
    leaf = leaf_of(to, NormSite("norm", "x", NormKind.LAYER, None, 2, 4, True, None, 0), fit, torch.float64)
    for _ in range(50):
        leaf.train()(mean + deviation * torch.randn(8, 16, 4, generator=random, dtype=torch.float64))
    again = trained_fits({"norm": fit}, {"norm": leaf})["norm"]
    x = mean + deviation * torch.randn(8, 16, 4, generator=random, dtype=torch.float64)
    was, now = (x * found.scale + found.shift for found in (fit, again))
    # The statistics of ten batches of 128 tokens lie a few hundredths of a deviation from the true ones.
    assert (now - was).norm() < 0.04 * was.norm()


def test_without_calibration_a_leaf_has_the_statistics_of_a_new_norm() -> None:
    module = Written(lambda m, x: m.norm(x), norm=nn.LayerNorm(4))
    program = canonical(capture(randomised(module), (torch.ones(2, 4),)))
    (site,) = norm_sites(program)
    fit = uncalibrated(program, {site.name: replace(_fit([2.0, -0.5, 0.25, 3.0]), site=site.name)})[site.name]
    leaf = leaf_of("batch", site, fit, torch.float64)
    assert leaf.get_buffer("running_mean").tolist() == [0.0] * 4
    assert leaf.get_buffer("running_var").tolist() == [1.0] * 4


def test_a_leaf_of_a_16_bit_value_counts_in_32_bits() -> None:
    site = NormSite("norm", "x", NormKind.RMS, None, 2, 4, False, None, 0)
    leaf = leaf_of("unified", site, _fit([1.0, 2.0, 3.0, 4.0]), torch.float16)
    assert {parameter.dtype for parameter in leaf.parameters()} == {torch.float32}
    assert leaf.eval()(torch.ones(1, 1, 4, dtype=torch.float16)).dtype == torch.float16
