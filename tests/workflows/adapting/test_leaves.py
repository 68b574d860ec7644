"""Modules in the places of norms, and the fits that they are made of."""

import pytest
import torch

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import NormKind, NormSite
from flowopt.workflows.adapting.leaves import leaf_of, trained_fits, with_live_channels


def _fit(scale: list[float]) -> NormFit:
    random = torch.Generator().manual_seed(0)
    found = torch.tensor(scale, dtype=torch.float64)
    shift, square = torch.randn(2, len(scale), generator=random, dtype=torch.float64)
    return NormFit("norm", 9, 0, 0.1, 1.0, 1.0, square.square(), found, shift)


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


def test_a_leaf_of_a_16_bit_value_counts_in_32_bits() -> None:
    site = NormSite("norm", "x", NormKind.RMS, None, 2, 4, False, None, 0)
    leaf = leaf_of("unified", site, _fit([1.0, 2.0, 3.0, 4.0]), torch.float16)
    assert {parameter.dtype for parameter in leaf.parameters()} == {torch.float32}
    assert leaf.eval()(torch.ones(1, 1, 4, dtype=torch.float16)).dtype == torch.float16
