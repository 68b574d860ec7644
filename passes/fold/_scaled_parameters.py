"""The parameters of a layer that takes a scale."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._lost_digits import loses_digits


@dataclass(frozen=True, slots=True)
class Scaled:
    """How one layer takes the scale.

    Attributes:
        layer: linear layer, convolution or embedding.
        is_before: its outputs are scaled, not its inputs.
        features: the outputs that are scaled, or the feature that each input shows; None: all, by one scale.
        spread: the shape to which the scale is expanded to have a factor for each of ``features``, in order.
    """

    layer: fx.Node
    is_before: bool
    features: tuple[int, ...] | None
    spread: tuple[int, ...] | None = None


def _factors_of(scaled: Scaled, factors: Tensor, weight: Tensor) -> Tensor:
    """A factor for each feature that a layer gives, or reads."""
    factors = factors.to(weight.device)
    count = (layers.output_features if scaled.is_before else layers.input_features)(scaled.layer, weight)
    if scaled.features is None:
        return factors.flatten().expand(count)
    places = list(scaled.features)
    if not scaled.is_before:
        return factors.flatten()[places]
    all_factors = torch.ones(count, dtype=torch.float64, device=weight.device)
    all_factors[places] = factors.flatten() if scaled.spread is None else factors.expand(scaled.spread).flatten()
    return all_factors


def scaled_parameters(scaled: Scaled, factors: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The new weight, and the new bias where there is one that changes."""
    own = _factors_of(scaled, factors, weight)
    if not scaled.is_before:
        return [layers.scaled_inputs(scaled.layer, weight, own)]
    return [layers.scaled_outputs(scaled.layer, weight, own), *([] if bias is None else [bias * own])]


def out_of_range(scaled: Scaled, factors: Tensor, old: list[Tensor], stored: Tensor | None) -> str | None:
    """What is wrong with the scaled parameters, if anything."""
    assert stored is not None
    limits = torch.finfo(stored.dtype)
    smallest, largest = limits.tiny**0.5, limits.max**0.5
    # Values between the layer and the scale are scaled too: of this range, two meet without leaving the dtype's.
    if not bool(((factors.abs() >= smallest) & (factors.abs() <= largest)).all()):
        return f"a factor is not between {smallest:.3g} and {largest:.3g}, or is no number"
    for before, after in zip(old, scaled_parameters(scaled, factors, *old, *[None] * (2 - len(old))), strict=True):
        if not bool((after.abs() <= limits.max).all()):
            return f"a scaled parameter would exceed {limits.max:.3g}"
        if loses_digits(after, before, limits, by_column=False):
            return f"scaled parameters would be below {limits.tiny:.3g} and lose digits"
    return None
