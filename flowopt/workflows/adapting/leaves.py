"""The modules that take the places of norms while they are trained."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_parts import gain_and_shift, norm_parts
from flowopt.analysis.norm_sites import NormSite
from flowopt.errors import InternalError
from flowopt.ops import AlphaBatchNorm, FrozenNorm, PowerNorm, UnifiedNorm
from flowopt.program.program import Program

_LEAST_SCALE: Final = 2.0**-20


@runtime_checkable
class Foldable(Protocol):
    """A norm that is a scale and a shift in eval mode."""

    def frozen_affine(self) -> tuple[Tensor, Tensor]: ...


def leaf_of(to: str, site: NormSite, fit: NormFit, dtype: torch.dtype) -> nn.Module:
    """A module that computes ``scale * x + shift`` of the fit, until it is trained.

    Args:
        to: ``power``, ``unified``, ``frozen`` or ``batch``.
        site: what it takes the place of.
        fit: of that norm, float64.
        dtype: of the norm's value. The module's own numbers have at least 32 bits: squares overflow 16.
    """
    makers: dict[str, Callable[..., nn.Module]] = {
        "power": PowerNorm.from_affine,
        "unified": UnifiedNorm.from_affine,
        "frozen": FrozenNorm.from_affine,
        "batch": partial(AlphaBatchNorm.from_affine, mean=fit.mean),
    }
    made = makers[to](fit.scale, fit.shift, fit.mean_square, channel_axis=site.axis)
    return made.to(torch.promote_types(dtype, torch.float32))


def with_live_channels(fit: NormFit) -> NormFit:
    """The fit with no scale below 2^-20 of its largest.

    A trained gain of 1e-33 is a channel that says nothing. As a fixed scale it would bind the whole residual stream:
    what is absorbed divides by it. A millionth of the other channels stays as good as nothing.
    """
    least = fit.scale.abs().max() * _LEAST_SCALE
    sign = torch.where(fit.scale < 0, -1.0, 1.0).to(fit.scale.dtype)
    return replace(fit, scale=torch.where(fit.scale.abs() < least, sign * least, fit.scale))


def uncalibrated(program: Program, fits: Mapping[str, NormFit]) -> dict[str, NormFit]:
    """The fits of norms whose statistics nobody measured: mean 0, variance 1, the gain and shift they have."""
    found: dict[str, NormFit] = {}
    for node in program.graph.nodes:
        parts = norm_parts(node)
        if parts is None or parts.output.name not in fits:
            continue
        fit = fits[parts.output.name]
        gain, shift = gain_and_shift(parts, program.constant)
        ones = torch.ones_like(fit.mean_square)
        zeros = torch.zeros_like(ones)
        found[fit.site] = replace(fit, scale=ones * gain, shift=zeros + shift, mean=zeros, mean_square=ones)
    return found


def trained_fits(fits: Mapping[str, NormFit], leaves: Mapping[str, nn.Module]) -> dict[str, NormFit]:
    """The fits with the scale and the shift that trained modules have at inference."""
    found = dict(fits)
    for name, leaf in leaves.items():
        if not isinstance(leaf, Foldable):
            raise InternalError(f"{type(leaf).__name__} at {name} has no frozen scale")
        scale, shift = leaf.frozen_affine()
        found[name] = replace(fits[name], scale=scale.cpu(), shift=shift.cpu())
    return found
