"""Wrong constants: weights, biases and numbers."""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from flowopt.rewrite import Edit
from tests.mutation.building import changed_parameter, normed_again, stored, with_arguments
from tests.mutation.kind import mutates
from tests.mutation.reading import (
    ATTENTION,
    aten,
    calls,
    has_bias,
    is_batch_normed,
    is_float,
    is_square,
    is_stored,
    is_weighted,
    shape,
    source,
)


def _changed(tensor: Tensor, change: Callable[[Tensor], object]) -> Tensor:
    copy = tensor.clone()
    change(copy)
    return copy


@mutates(is_weighted)
def weight_slightly_off(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> (1 + 1e-6) W."""
    return changed_parameter(edit, node, 1, lambda w: w * (1 + 1e-6))


@mutates(is_weighted)
def one_weight_slightly_off(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W with its last element times 1 + 1e-4."""
    return changed_parameter(edit, node, 1, lambda w: _changed(w, lambda t: t.view(-1)[-1:].mul_(1 + 1e-4)))


@mutates(is_weighted)
def weight_through_half(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W rounded to half precision."""
    return changed_parameter(edit, node, 1, lambda w: w.half().double())


@mutates(is_weighted)
def weight_through_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W rounded to bfloat16."""
    return changed_parameter(edit, node, 1, lambda w: w.bfloat16().double())


@mutates(is_weighted)
def weight_in_eight_bits(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W on the grid of int8 with one scale."""
    return changed_parameter(edit, node, 1, lambda w: (w / w.abs().max() * 127).round() * w.abs().max() / 127)


@mutates(is_weighted)
def last_output_channel_negated(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W with the sign of its last output channel lost."""
    return changed_parameter(edit, node, 1, lambda w: _changed(w, lambda t: t[-1:].neg_()))


@mutates(is_weighted)
def last_input_channel_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W with its last input channel zero."""
    return changed_parameter(edit, node, 1, lambda w: _changed(w, lambda t: t[:, -1:].zero_()))


@mutates(is_weighted)
def small_weights_pruned(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W without its hundredth of smallest elements."""
    return changed_parameter(edit, node, 1, lambda w: torch.where(w.abs() < w.abs().flatten().quantile(0.01), 0.0, w))


@mutates(is_weighted)
def outliers_clipped(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W clipped at 99.9 % of its largest magnitude."""
    return changed_parameter(edit, node, 1, lambda w: w.clamp(-0.999 * w.abs().max(), 0.999 * w.abs().max()))


@mutates(is_square)
def square_weight_transposed(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W^T, which fits where W is square."""
    return changed_parameter(edit, node, 1, lambda w: w.transpose(0, 1))


@mutates(is_weighted)
def last_channels_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """W -> W with its last two output channels swapped."""
    return changed_parameter(edit, node, 1, lambda w: torch.cat([w[:-2], w[-1:], w[-2:-1]]))


@mutates(has_bias)
def bias_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """W x + b -> W x."""
    return with_arguments(edit, node, {2: None})


@mutates(has_bias)
def bias_slightly_off(edit: Edit, node: fx.Node) -> fx.Node:
    """b -> (1 + 1e-6) b."""
    return changed_parameter(edit, node, 2, lambda b: b * (1 + 1e-6))


@mutates(has_bias)
def bias_twice(edit: Edit, node: fx.Node) -> fx.Node:
    """W x + b -> W x + 2 b."""
    return changed_parameter(edit, node, 2, lambda b: 2 * b)


@mutates(has_bias)
def bias_of_one_channel(edit: Edit, node: fx.Node) -> fx.Node:
    """b -> the first element of b for every channel."""
    return changed_parameter(edit, node, 2, lambda b: b[:1].expand(b.shape))


_gains = calls(aten.layer_norm.default, where=lambda node: is_stored(node.args[2]) and is_stored(node.args[3]))


@mutates(_gains)
def gain_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """layer_norm with gain -> without."""
    return with_arguments(edit, node, {2: None})


@mutates(_gains)
def shift_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """layer_norm with shift -> without."""
    return with_arguments(edit, node, {3: None})


@mutates(_gains)
def gain_plus_one(edit: Edit, node: fx.Node) -> fx.Node:
    """gain -> 1 + gain, as models store it that start from zero."""
    return changed_parameter(edit, node, 2, lambda g: 1 + g)


@mutates(_gains)
def gain_made_positive(edit: Edit, node: fx.Node) -> fx.Node:
    """gain -> |gain|."""
    return changed_parameter(edit, node, 2, lambda g: g.abs())


@mutates(_gains)
def zero_gain_filled(edit: Edit, node: fx.Node) -> fx.Node:
    """gain -> gain with zeros replaced by 1e-3, so that one may divide by it."""
    return changed_parameter(edit, node, 2, lambda g: torch.where(g.abs() < 1e-6, 1e-3, g))


@mutates(_gains)
def gain_and_shift_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """gain, shift -> shift, gain."""
    return with_arguments(edit, node, {2: node.args[3], 3: node.args[2]})


def _scaled_by_weight(node: fx.Node) -> bool:
    return node.target is aten.mul.Tensor and is_stored(node.args[0]) and is_float(node.args[1])


@mutates(_scaled_by_weight)
def gain_averaged(edit: Edit, node: fx.Node) -> fx.Node:
    """A gain per channel -> one gain."""
    return changed_parameter(edit, node, 0, lambda g: g.mean().expand(g.shape))


@mutates(_scaled_by_weight)
def gain_rotated(edit: Edit, node: fx.Node) -> fx.Node:
    """A gain per channel -> the gain of the channel before."""
    return changed_parameter(edit, node, 0, lambda g: g.roll(1))


@mutates(is_batch_normed)
def running_mean_forgotten(edit: Edit, node: fx.Node) -> fx.Node:
    """(x - mean) / std -> x / std."""
    return normed_again(edit, node, {3: stored(edit, source(source(node), 3), torch.zeros_like)})


@mutates(is_batch_normed)
def variance_without_root(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(var + eps) -> 1 / (var + eps)."""
    return normed_again(edit, node, {4: stored(edit, source(source(node), 4), torch.square)})


@mutates(is_batch_normed)
def statistics_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """mean, var -> shift, gain's square, where another order of arguments was expected."""
    _, gain, shift, mean, variance, *_ = source(node).args
    return normed_again(edit, node, {1: variance, 2: mean, 3: shift, 4: variance})


@mutates(is_batch_normed)
def variance_unbiased_again(edit: Edit, node: fx.Node) -> fx.Node:
    """var -> var n / (n - 1) with n = 1e4."""
    return normed_again(edit, node, {4: stored(edit, source(source(node), 4), lambda v: v * (1 + 1e-4))})


_numbers = calls(
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    where=lambda node: isinstance(node.args[1], (int, float)) and node.args[1] not in (0, 1) and is_float(node),
)


@mutates(_numbers)
def number_slightly_off(edit: Edit, node: fx.Node) -> fx.Node:
    """c -> (1 + 1e-6) c."""
    return with_arguments(edit, node, {1: node.args[1] * (1 + 1e-6)})  # type: ignore[operator]  # a number


@mutates(calls(aten.mul.Tensor, aten.div.Tensor, where=_numbers))
def multiplied_for_divided(edit: Edit, node: fx.Node) -> fx.Node:
    """x c <-> x / c."""
    other = aten.div.Tensor if node.target is aten.mul.Tensor else aten.mul.Tensor
    return edit.call(other, *node.args)


@mutates(calls(ATTENTION, where=lambda node: "scale" in node.kwargs))
def scale_slightly_off(edit: Edit, node: fx.Node) -> fx.Node:
    """The scale of attention -> (1 + 1e-6) times it."""
    return with_arguments(edit, node, {}, scale=node.kwargs["scale"] * (1 + 1e-6))  # type: ignore[operator]


@mutates(calls(aten.embedding.default, where=lambda node: shape(node.args[0])[0] > 8))
def table_through_half(edit: Edit, node: fx.Node) -> fx.Node:
    """A table -> the table rounded to half precision."""
    return changed_parameter(edit, node, 0, lambda w: w.half().double())
