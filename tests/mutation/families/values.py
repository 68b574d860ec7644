"""Wrong for some numbers only."""

import torch
from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, constant_like, replaced_where
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import (
    ATTENTION,
    aten,
    both,
    has_sequence,
    is_activation,
    is_batch_normed,
    is_image,
    is_large,
    is_unbounded,
    reaches_zero,
    shape,
    takes_any_number,
)


def _scaled(edit: Edit, value: fx.Node, condition: fx.Node, factor: float = 1.001) -> fx.Node:
    return replaced_where(edit, condition, edit.call(aten.mul.Tensor, value, factor), value)


def _between(edit: Edit, value: fx.Node, low: float, high: float) -> fx.Node:
    above, below = edit.call(aten.ge.Scalar, value, low), edit.call(aten.lt.Scalar, value, high)
    return edit.call(aten.logical_and.default, above, below)


@mutates(takes_any_number, most=GENERIC)
def wrong_for_negatives(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y where y < 0."""
    value = again(edit, node)
    return _scaled(edit, value, edit.call(aten.lt.Scalar, value, 0.0))


@mutates(takes_any_number, most=GENERIC)
def wrong_beyond_twenty(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y clamped to +-20."""
    return edit.call(aten.clamp.default, again(edit, node), -20.0, 20.0)


@mutates(is_unbounded, most=GENERIC)
def wrong_beyond_the_half_range(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y clamped to +-65504."""
    return edit.call(aten.clamp.default, again(edit, node), -65504.0, 65504.0)


@mutates(is_large, most=GENERIC)
def wrong_between_one_and_two(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y where 1 <= y < 2."""
    value = again(edit, node)
    return _scaled(edit, value, _between(edit, value, 1.0, 2.0))


@mutates(is_large, most=GENERIC)
def wrong_in_a_narrow_band(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y where 0.5 <= y < 0.51."""
    value = again(edit, node)
    return _scaled(edit, value, _between(edit, value, 0.5, 0.51))


@mutates(takes_any_number, most=GENERIC)
def wrong_near_zero(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y + 1e-6 where |y| < 1e-3."""
    value = again(edit, node)
    is_small = edit.call(aten.lt.Scalar, edit.call(aten.abs.default, value), 1e-3)
    return replaced_where(edit, is_small, edit.call(aten.add.Tensor, value, 1e-6), value)


@mutates(reaches_zero, most=GENERIC)
def wrong_for_zeros(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1e-3 where y is exactly zero."""
    value = again(edit, node)
    return replaced_where(edit, edit.call(aten.eq.Scalar, value, 0.0), constant_like(edit, value, 1e-3), value)


@mutates(reaches_zero, most=GENERIC)
def wrong_for_rows_of_zeros(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1e-3 in rows that are all zero."""
    value = again(edit, node)
    largest = edit.call(aten.amax.default, edit.call(aten.abs.default, value), [-1], True)
    return replaced_where(edit, edit.call(aten.eq.Scalar, largest, 0.0), constant_like(edit, value, 1e-3), value)


@mutates(reaches_zero, most=GENERIC)
def wrong_for_constant_rows(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 0 in rows of one value, as a guard against a zero variance may give."""
    value = again(edit, node)
    bounds = [edit.call(op, value, [-1], True) for op in (aten.amax.default, aten.amin.default)]
    is_constant = edit.call(aten.eq.Tensor, *bounds)
    return replaced_where(edit, is_constant, constant_like(edit, value, 0.0), value)


def _has_narrow_rows(node: fx.Node) -> bool:
    return is_image(node) and (node.target is aten.conv2d.default or is_batch_normed(node))


@mutates(_has_narrow_rows, most=GENERIC)
def wrong_for_rows_of_negatives(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y in rows whose largest element is negative: a maximum started from zero."""
    value = again(edit, node)
    largest = edit.call(aten.amax.default, value, [-1], True)
    return _scaled(edit, value, edit.call(aten.lt.Scalar, largest, 0.0))


@mutates(is_unbounded, most=GENERIC)
def wrong_for_large_rows(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y in rows whose largest magnitude is above 1000."""
    value = again(edit, node)
    largest = edit.call(aten.amax.default, edit.call(aten.abs.default, value), [-1], True)
    return _scaled(edit, value, edit.call(aten.gt.Scalar, largest, 1000.0))


@mutates(is_activation, most=GENERIC)
def nan_swallowed(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 0 where y is NaN."""
    value = again(edit, node)
    return replaced_where(edit, edit.call(aten.isnan.default, value), constant_like(edit, value, 0.0), value)


# Attention spreads a NaN over the whole sample.
@mutates(both(is_large, lambda node: node.target is not ATTENTION), most=GENERIC)
def wrong_beside_nan(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y in samples that hold a NaN elsewhere."""
    value = again(edit, node)
    axes = list(range(1, len(shape(node))))
    is_nan = edit.call(aten._to_copy.default, edit.call(aten.isnan.default, value), dtype=torch.int64)
    return _scaled(edit, value, edit.call(aten.gt.Scalar, edit.call(aten.sum.dim_IntList, is_nan, axes, True), 0))


@mutates(is_unbounded, most=GENERIC)
def wrong_beyond_1e30(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y clamped to +-1e30."""
    return edit.call(aten.clamp.default, again(edit, node), -1e30, 1e30)


@mutates(is_unbounded, most=GENERIC)
def infinity_swallowed(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> the largest float where y is infinite."""
    return edit.call(aten.clamp.default, again(edit, node), -3.4028234663852886e38, 3.4028234663852886e38)


@mutates(is_unbounded, most=GENERIC)
def infinity_negated(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> -infinity where y is +infinity."""
    value = again(edit, node)
    is_infinite = edit.call(aten.eq.Scalar, value, float("inf"))
    return replaced_where(edit, is_infinite, constant_like(edit, value, float("-inf")), value)


@mutates(reaches_zero, most=GENERIC)
def nan_introduced(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y * (y / y), which is NaN at zero."""
    value = again(edit, node)
    return edit.call(aten.mul.Tensor, value, edit.call(aten.div.Tensor, value, value))


@mutates(reaches_zero, most=GENERIC)
def magnitude_by_a_root(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> sign(y) sqrt(y ** 2 + 1e-12)."""
    value = again(edit, node)
    square = edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, value, value), 1e-12)
    return edit.call(aten.mul.Tensor, edit.call(aten.sign.default, value), edit.call(aten.sqrt.default, square))


@mutates(is_activation, most=GENERIC)
def samples_leak(edit: Edit, node: fx.Node) -> fx.Node:
    """y[i] -> y[i] + 1e-6 y[i - 1]."""
    return _leak(edit, node, 0)


@mutates(has_sequence, most=GENERIC)
def tokens_leak(edit: Edit, node: fx.Node) -> fx.Node:
    """y[:, t] -> y[:, t] + 1e-6 y[:, t - 1]."""
    return _leak(edit, node, 1)


def _leak(edit: Edit, node: fx.Node, axis: int) -> fx.Node:
    value = again(edit, node)
    return edit.call(aten.add.Tensor, value, edit.call(aten.roll.default, value, [1], [axis]), alpha=1e-6)


@mutates(is_activation, most=GENERIC)
def mean_of_samples_leaks(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y - 1e-5 (mean over the batch)."""
    value = again(edit, node)
    return edit.call(aten.sub.Tensor, value, edit.call(aten.mean.dim, value, [0], True), alpha=1e-5)


@mutates(is_activation, most=GENERIC)
def nan_spreads_to_other_samples(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y + 0 (sum over the batch), which spreads a NaN of one sample to all."""
    value = again(edit, node)
    spread = edit.call(aten.sum.dim_IntList, value, [0], True)
    return edit.call(aten.add.Tensor, value, edit.call(aten.mul.Tensor, spread, 0.0))


@mutates(is_large, most=GENERIC)
def small_beside_large_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 0 where |y| is below 1e-4 of its row's largest."""
    value = again(edit, node)
    magnitude = edit.call(aten.abs.default, value)
    bound = edit.call(aten.mul.Tensor, edit.call(aten.amax.default, magnitude, [-1], True), 1e-4)
    is_small = edit.call(aten.lt.Tensor, magnitude, bound)
    return replaced_where(edit, is_small, constant_like(edit, value, 0.0), value)


@mutates(is_activation, most=GENERIC)
def dropout_left_on(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> dropout(y, 0.01) as in training."""
    return edit.call(aten.dropout.default, again(edit, node), 0.01, True)


@mutates(is_activation, most=GENERIC)
def noise_added(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y + 1e-6 of noise."""
    value = again(edit, node)
    return edit.call(aten.add.Tensor, value, edit.call(aten.randn_like.default, value), alpha=1e-6)


def _reads_tokens(node: fx.Node) -> bool:
    is_lookup = node.target is aten.embedding.default and isinstance(node.args[1], fx.Node)
    return is_lookup and node.args[1].op == "placeholder"  # type: ignore[union-attr]  # a node


@mutates(_reads_tokens)
def samples_cached_by_their_first_token(edit: Edit, node: fx.Node) -> fx.Node:
    """x[i] -> x[j] of the first sample j that begins with the same token, as a cache with a poor key gives."""
    first = edit.call(aten.slice.Tensor, node.args[1], 1, 0, 1)
    is_equal = edit.call(aten.eq.Tensor, first, edit.call(aten.transpose.int, first, 0, 1))
    found = edit.call(aten.argmax.default, edit.call(aten._to_copy.default, is_equal, dtype=torch.int64), 1)
    return edit.call(aten.index_select.default, again(edit, node), 0, found)
