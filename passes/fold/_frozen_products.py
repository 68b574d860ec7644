"""Products of frozen norms that ``fold-norm-affine`` folds whole, shift and all, into the layers behind them."""

from collections.abc import Iterable

import torch
from torch import fx

from flowopt.analysis.channel_steps import ChannelStep, composed, frozen_norm
from flowopt.analysis.sliding import sliding_of
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._folded_inputs import folded_inputs
from flowopt.program.program import Program


def products_of_frozen_norms(program: Program, products: Iterable[fx.Node]) -> set[fx.Node]:
    """Those of norms that only linear layers and unpadded convolutions read, along their features and in range."""
    frozen = {node: steps for node in products if (steps := frozen_norm(node))}
    return {node for node, steps in frozen.items() if _folds(program, steps)}


def _folds(program: Program, steps: tuple[ChannelStep, ...]) -> bool:
    value, axis = steps[-1].value, steps[0].axis
    channels = static_size(value, axis)
    if channels is None or not value.users or not all(_takes_shift(user, value, axis) for user in value.users):
        return False
    gain, shift = composed(steps, program.constant, channels)
    for layer in value.users:
        weight, bias = layers.weight_and_bias(layer)
        parameters = program.constant(weight), None if bias is None else program.constant(bias)
        recorded = recorded_tensor(layer)
        assert recorded is not None  # a graph without is not legal
        found, limits = folded_inputs(layer, range(channels), parameters, gain, shift), torch.finfo(recorded.dtype)
        if found.overflows(limits) or found.underflows(limits, is_bounded=False):
            return False
    return True


def _takes_shift(layer: fx.Node, value: fx.Node, axis: int) -> bool:
    is_layer = layer.target is layers.LINEAR or layer.target in layers.CONVOLUTIONS
    if not is_layer or layer.args[0] is not value or layers.feature_axis_of(layer, value) != axis:
        return False
    if not all(one is None or is_parameter_only(one) for one in layers.weight_and_bias(layer)):
        return False
    return layer.target is layers.LINEAR or not sliding_of(layer).pads
