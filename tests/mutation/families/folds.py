"""Folds, merges and swaps that forget something."""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from flowopt.rewrite import Edit
from tests.mutation.building import normed_again, stored, with_arguments
from tests.mutation.kind import mutates
from tests.mutation.reading import (
    argument,
    aten,
    calls,
    is_batch_normed,
    is_float,
    is_square,
    is_stored,
    is_weighted,
    shape,
    source,
)

Change = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _follows_convolution(node: fx.Node) -> bool:
    return is_batch_normed(node) and is_weighted(source(source(node))) and len(source(source(node)).users) == 1


def _with_bias(node: fx.Node) -> bool:
    return _follows_convolution(node) and isinstance(argument(source(source(node)), 2), fx.Node)


def _ungrouped_square(node: fx.Node) -> bool:
    return _follows_convolution(node) and is_square(source(source(node)))


def _fold(edit: Edit, node: fx.Node, change: Change) -> fx.Node:
    """Fold a batch norm by ``change(weight, bias, scale, shift)``, where norm(y) = scale * y + shift."""
    norm = source(node)
    conv = source(norm)
    gain, shift, mean, variance = (edit.constant(source(norm, i)) for i in range(1, 5))
    scale = gain * torch.rsqrt(variance + float(norm.args[6]))  # type: ignore[arg-type]  # a number
    weight = edit.constant(source(conv, 1))
    bias = edit.constant(source(conv, 2)) if isinstance(argument(conv, 2), fx.Node) else torch.zeros_like(gain)
    new_weight, new_bias = change(weight, bias, scale, shift - scale * mean)
    made_weight = edit.parameter("folded.weight", new_weight, like=source(conv, 1))
    made_bias = edit.parameter("folded.bias", new_bias, like=source(conv, 1))
    return with_arguments(edit, conv, {1: made_weight, 2: made_bias})


def _column(scale: Tensor) -> Tensor:
    return scale.view(-1, 1, 1, 1)


@mutates(_with_bias)
def fold_forgets_the_bias(edit: Edit, node: fx.Node) -> fx.Node:
    """norm(W x + b) -> (s W) x + t, without s b."""
    return _fold(edit, node, lambda w, b, s, t: (w * _column(s), t))


@mutates(_with_bias)
def fold_leaves_the_bias(edit: Edit, node: fx.Node) -> fx.Node:
    """norm(W x + b) -> (s W) x + b + t."""
    return _fold(edit, node, lambda w, b, s, t: (w * _column(s), b + t))


@mutates(_follows_convolution)
def fold_rounds_the_scale(edit: Edit, node: fx.Node) -> fx.Node:
    """norm(W x) -> fold with its scale in bfloat16."""
    return _fold(edit, node, lambda w, b, s, t: (w * _column(s.bfloat16().double()), s * b + t))


@mutates(_follows_convolution)
def fold_of_a_magnitude(edit: Edit, node: fx.Node) -> fx.Node:
    """norm(W x) -> fold with |s|: one channel has a negative gain."""
    return _fold(edit, node, lambda w, b, s, t: (w * _column(s.abs()), s * b + t))


@mutates(_ungrouped_square)
def fold_on_input_channels(edit: Edit, node: fx.Node) -> fx.Node:
    """norm(W x) -> fold that scales input channels, which fits a square weight."""
    return _fold(edit, node, lambda w, b, s, t: (w * s.view(1, -1, 1, 1), s * b + t))


def _normed_then_padded(node: fx.Node) -> bool:
    is_padded = node.target is aten.conv2d.default and argument(node, 4, [0, 0]) != [0, 0]
    return is_padded and is_batch_normed(source(node)) and isinstance(argument(node, 2), fx.Node)


@mutates(_normed_then_padded)
def fold_through_padding(edit: Edit, node: fx.Node) -> fx.Node:
    """conv(norm(x)) -> conv'(x), though the padding is not normed."""
    norm = source(source(node))
    gain, shift, mean, variance = (edit.constant(source(norm, i)) for i in range(1, 5))
    scale = gain * torch.rsqrt(variance + float(norm.args[6]))  # type: ignore[arg-type]  # a number
    weight, bias = edit.constant(source(node, 1)), edit.constant(source(node, 2))
    new_bias = bias + (weight * (shift - scale * mean).view(1, -1, 1, 1)).sum((1, 2, 3))
    made_weight = edit.parameter("folded.weight", weight * scale.view(1, -1, 1, 1), like=source(node, 1))
    made_bias = edit.parameter("folded.bias", new_bias, like=source(node, 2))
    return with_arguments(edit, node, {0: norm.args[0], 1: made_weight, 2: made_bias})


def _normed_linear(node: fx.Node) -> bool:
    norm = source(node) if node.target is aten.linear.default else node
    return norm.target is aten.layer_norm.default and is_weighted(node) and is_stored(argument(norm, 3))


@mutates(_normed_linear)
def fold_forgets_the_shift(edit: Edit, node: fx.Node) -> fx.Node:
    """linear(gain x + shift) -> (W gain) x + b, without W shift."""
    norm = source(node)
    gain, weight = edit.constant(source(norm, 2)), edit.constant(source(node, 1))
    plain = with_arguments(edit, norm, {2: None, 3: None})
    made = edit.parameter("folded.weight", weight * gain, like=source(node, 1))
    return with_arguments(edit, node, {0: plain, 1: made})


@mutates(_normed_linear)
def fold_keeps_the_gain(edit: Edit, node: fx.Node) -> fx.Node:
    """linear(gain x + shift) -> fold whose norm keeps its gain."""
    norm = source(node)
    gain, weight = edit.constant(source(norm, 2)), edit.constant(source(node, 1))
    made = edit.parameter("folded.weight", weight * gain, like=source(node, 1))
    return with_arguments(edit, node, {1: made})


def _normed_pool(node: fx.Node) -> bool:
    is_pool = node.target is aten.max_pool2d.default and source(node).target is aten.relu.default
    return is_pool and is_batch_normed(source(source(node)))


@mutates(_normed_pool)
def pool_moved_before_the_norm(edit: Edit, node: fx.Node) -> fx.Node:
    """pool(relu(norm(x))) -> relu(norm(pool(x))), which needs gains above zero."""
    normed = source(source(node))
    pooled = with_arguments(edit, node, {0: source(source(normed))})
    return edit.call(aten.relu.default, normed_again(edit, normed, {0: pooled}))


@mutates(calls(aten.adaptive_avg_pool2d.default, where=lambda node: source(node).target is aten.relu.default))
def mean_moved_through_relu(edit: Edit, node: fx.Node) -> fx.Node:
    """mean(relu(x)) -> relu(mean(x))."""
    return edit.call(aten.relu.default, with_arguments(edit, node, {0: source(source(node))}))


def _sibling(node: fx.Node) -> fx.Node | None:
    """Another linear layer of the same input and sizes."""
    for other in source(node).users:
        is_like = other is not node and other.target is aten.linear.default and other.args[0] is node.args[0]
        if is_like and shape(other.args[1]) == shape(node.args[1]):
            return other
    return None


@mutates(lambda node: node.target is aten.linear.default and is_weighted(node) and _sibling(node) is not None)
def merged_layers_split_in_the_wrong_order(edit: Edit, node: fx.Node) -> fx.Node:
    """Two layers of one input as one product -> the other half of it."""
    sibling = _sibling(node)
    assert sibling is not None
    rows = shape(node.args[1])[0]
    both = edit.parameter(
        "merged.weight",
        torch.cat([edit.constant(source(n, 1)) for n in (node, sibling)]),
        like=source(node, 1),
    )
    bias = []
    if isinstance(argument(node, 2), fx.Node):
        shifts = torch.cat([edit.constant(source(n, 2)) for n in (node, sibling)])
        bias = [edit.parameter("merged.bias", shifts, like=source(node, 2))]
    product = edit.call(aten.linear.default, node.args[0], both, *bias)
    return edit.call(aten.slice.Tensor, product, -1, rows, 2 * rows)


@mutates(calls(aten.linear.default, where=is_weighted))
def split_product_loses_a_term(edit: Edit, node: fx.Node) -> fx.Node:
    """W x + b as the sum of two products -> the first but one input is in neither."""
    width = shape(node.args[1])[1]
    half = width // 2
    first = edit.call(
        aten.linear.default,
        edit.call(aten.slice.Tensor, node.args[0], -1, 0, half),
        stored(edit, source(node, 1), lambda w: w[:, :half]),
    )
    second = edit.call(
        aten.linear.default,
        edit.call(aten.slice.Tensor, node.args[0], -1, half + 1, width),
        stored(edit, source(node, 1), lambda w: w[:, half + 1 :]),
        *node.args[2:],
    )
    return edit.call(aten.add.Tensor, first, second)


@mutates(calls(aten.linear.default, where=is_weighted))
def product_of_low_rank(edit: Edit, node: fx.Node) -> fx.Node:
    """W x -> U V x without the smallest singular value."""
    left, values, right = torch.linalg.svd(edit.constant(source(node, 1)), full_matrices=False)
    first = edit.parameter("low_rank.right", right[:-1] * values[:-1, None], like=source(node, 1))
    second = edit.parameter("low_rank.left", left[:, :-1], like=source(node, 1))
    inner = edit.call(aten.linear.default, node.args[0], first)
    return edit.call(aten.linear.default, inner, second, *node.args[2:])


def _adds_a_table(node: fx.Node) -> bool:
    return any(is_stored(n) and len(shape(n)) > 1 for n in node.args[:2])


@mutates(calls(aten.add.Tensor, where=_adds_a_table))
def position_table_rolled(edit: Edit, node: fx.Node) -> fx.Node:
    """x + table -> x + the table rolled by one position."""
    place = 1 if is_stored(node.args[1]) else 0
    return with_arguments(edit, node, {place: stored(edit, source(node, place), lambda w: w.roll(1, -2))})


@mutates(calls(aten.expand.default, where=lambda node: is_stored(node.args[0]) and is_float(node)))
def token_of_the_first_channel(edit: Edit, node: fx.Node) -> fx.Node:
    """A stored token -> its first channel for all."""
    return with_arguments(edit, node, {0: stored(edit, source(node), lambda w: w[..., :1].expand(w.shape))})
