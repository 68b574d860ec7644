"""The parameters of a layer that takes a gain and a shift of what it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._lost_digits import loses_digits


@final
@dataclass(frozen=True, slots=True)
class FoldedInputs:
    """New parameters, in float64.

    Attributes:
        layer: linear layer or convolution.
        weight: with the gain.
        bias: with the shift; None where there is neither.
        old: the weight without.
    """

    layer: fx.Node
    weight: Tensor
    bias: Tensor | None
    old: Tensor

    def overflows(self, limits: torch.finfo) -> bool:
        """Whether a parameter is beyond the range of a dtype, or no number."""
        found = [self.weight, *([] if self.bias is None else [self.bias])]
        return not all(bool((t.abs() <= limits.max).all()) for t in found)

    def underflows(self, limits: torch.finfo, *, is_bounded: bool) -> bool:
        """Whether weights lose digits.

        Args:
            limits: of the dtype that they are stored in.
            is_bounded: whether what the layer will read has one magnitude in all features, as behind a live norm.
        """
        groups = 1 if self.layer.target is layers.LINEAR else layers.groups_of(self.layer)
        return loses_digits(self.weight, self.old, limits, by_column=not is_bounded, groups=groups)


def folded_inputs(
    layer: fx.Node,
    features: Sequence[int],
    parameters: tuple[Tensor, Tensor | None],
    gain: Tensor | None,
    shift: Tensor | None,
) -> FoldedInputs:
    """A layer of ``gain * z + shift`` as one of z.

    Args:
        layer: linear layer or convolution without padding where there is a shift.
        features: which element of gain and shift belongs to each input of the layer.
        parameters: weight and bias, in float64.
        gain: (features,) float64; None: ones.
        shift: likewise; None: zeros.
    """
    weight, bias = parameters
    at = list(features)
    new_weight = weight if gain is None else layers.scaled_inputs(layer, weight, gain[at])
    if shift is not None:
        # What every output gets of an input that is the shift everywhere.
        added = layers.scaled_inputs(layer, weight, shift[at]).flatten(1).sum(1)
        bias = added if bias is None else bias + added
    return FoldedInputs(layer, new_weight, bias, weight)
