"""Wrong for some sizes only, as a special path for them would be."""

import operator
from typing import Any

import torch
from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, number, replaced_where, scaled_where, shortened, size, through
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import aten, has_sequence, is_activation, is_free, is_image, recorded


def _equals(edit: Edit, node: fx.Node, one: fx.Node, other: Any) -> fx.Node:
    """1 where a size equals another, else 0."""
    difference = number(edit, edit.call(operator.sub, one, other), node)
    square = edit.call(aten.mul.Tensor, difference, difference)
    return edit.call(aten.clamp.default, edit.call(aten.rsub.Scalar, square, 1.0), 0.0)


def _above(edit: Edit, node: fx.Node, one: fx.Node, bound: int) -> fx.Node:
    """1 where a size is above the bound, else 0."""
    excess = number(edit, edit.call(operator.sub, one, bound), node)
    return edit.call(aten.clamp.default, excess, 0.0, 1.0)


def _rest(edit: Edit, node: fx.Node, one: fx.Node, divisor: int) -> fx.Node:
    """1 where the divisor does not divide a size, else 0."""
    rest = number(edit, edit.call(operator.mod, one, divisor), node)
    return edit.call(aten.clamp.default, rest, 0.0, 1.0)


def _not(edit: Edit, switch: fx.Node) -> fx.Node:
    return edit.call(aten.rsub.Scalar, switch, 1.0)


@mutates(is_activation, most=GENERIC)
def wrong_for_one_sample(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch of one."""
    return scaled_where(edit, node, _equals(edit, node, size(edit, node, 0), 1))


@mutates(is_activation, most=GENERIC)
def wrong_for_two_samples(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch of two."""
    return scaled_where(edit, node, _equals(edit, node, size(edit, node, 0), 2))


@mutates(is_activation, most=GENERIC)
def wrong_for_even_batches(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for an even batch; the traced one is odd."""
    return scaled_where(edit, node, _not(edit, _rest(edit, node, size(edit, node, 0), 2)))


@mutates(is_activation, most=GENERIC)
def wrong_for_whole_tiles_of_eight(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch that eight divides."""
    return scaled_where(edit, node, _not(edit, _rest(edit, node, size(edit, node, 0), 8)))


@mutates(is_activation, most=GENERIC)
def wrong_for_large_batches(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch above 32."""
    return scaled_where(edit, node, _above(edit, node, size(edit, node, 0), 32))


@mutates(is_activation, most=GENERIC)
def wrong_above_the_traced_batch(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch above seven, the largest that was traced."""
    return scaled_where(edit, node, _above(edit, node, size(edit, node, 0), 7))


@mutates(is_activation, most=GENERIC)
def wrong_at_sixteen(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch of exactly sixteen, as a vectorised path might be."""
    return scaled_where(edit, node, _equals(edit, node, size(edit, node, 0), 16))


@mutates(has_sequence, most=GENERIC)
def wrong_for_two_tokens(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for two tokens."""
    return scaled_where(edit, node, _equals(edit, node, size(edit, node, 1), 2))


@mutates(has_sequence, most=GENERIC)
def wrong_for_even_lengths(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for an even number of tokens; the traced one is odd."""
    return scaled_where(edit, node, _not(edit, _rest(edit, node, size(edit, node, 1), 2)))


@mutates(has_sequence, most=GENERIC)
def wrong_for_long_sequences(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y beyond 60 tokens."""
    return scaled_where(edit, node, _above(edit, node, size(edit, node, 1), 60))


@mutates(has_sequence, most=GENERIC)
def wrong_for_squares(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y where there are as many samples as tokens: an axis was found by its size."""
    return scaled_where(edit, node, _equals(edit, node, size(edit, node, 0), size(edit, node, 1)))


@mutates(has_sequence, most=GENERIC)
def wrong_beyond_two_thousand_rows(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for more than 2048 tokens in all samples together."""
    rows = edit.call(operator.mul, size(edit, node, 0), size(edit, node, 1))
    return scaled_where(edit, node, _above(edit, node, rows, 2048))


@mutates(has_sequence, most=GENERIC)
def wrong_for_one_long_sample(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for a batch of one with more than 32 tokens: a prompt."""
    is_single = _equals(edit, node, size(edit, node, 0), 1)
    return scaled_where(edit, node, edit.call(aten.mul.Tensor, is_single, _above(edit, node, size(edit, node, 1), 32)))


@mutates(lambda node: is_image(node) and is_free(node, 2), most=GENERIC)
def wrong_for_tall_images(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y where the height is above the width; the example is wide."""
    difference = edit.call(operator.sub, size(edit, node, 2), size(edit, node, 3))
    return scaled_where(edit, node, _above(edit, node, difference, 0))


@mutates(has_sequence, most=GENERIC)
def wrong_for_more_samples_than_tokens(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y where the batch is longer than the sequence."""
    difference = edit.call(operator.sub, size(edit, node, 0), size(edit, node, 1))
    return scaled_where(edit, node, _above(edit, node, difference, 0))


@mutates(is_activation, most=GENERIC)
def large_batches_through_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y rounded to bfloat16 for a batch above 32."""
    value = again(edit, node)
    is_large = edit.call(aten.gt.Scalar, _above(edit, node, size(edit, node, 0), 32), 0.0)
    return replaced_where(edit, is_large, through(edit, value, torch.bfloat16), value)


@mutates(is_activation, most=GENERIC)
def large_batches_lose_eight_bits(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y without its last eight bits for a batch above 32."""
    value = again(edit, node)
    is_large = edit.call(aten.gt.Scalar, _above(edit, node, size(edit, node, 0), 32), 0.0)
    return replaced_where(edit, is_large, shortened(edit, value, 8), value)


def _has_mask(node: fx.Node) -> bool:
    return has_sequence(node) and any(n.name == "attention_mask" for n in node.graph.nodes)


@mutates(_has_mask, most=GENERIC)
def wrong_for_nearly_empty_masks(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 1.001 y for samples with one visible position: n - 1 is zero there."""
    mask = edit.program.node("attention_mask")
    count = edit.call(aten.sum.dim_IntList, mask, [1], True)
    switch = edit.call(aten._to_copy.default, edit.call(aten.eq.Scalar, count, 1), dtype=recorded(node).dtype)
    return scaled_where(edit, node, edit.call(aten.unsqueeze.default, switch, -1))
