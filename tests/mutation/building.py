"""Pieces that wrong values are made of."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.rewrite import Edit
from tests.mutation.reading import ATTENTION, argument, aten, recorded, shape, source


def again(edit: Edit, node: fx.Node) -> fx.Node:
    """The node computed once more: what reads it is not rewired by the claim on the node."""
    return edit.repeat(node, {})


def with_arguments(edit: Edit, node: fx.Node, changes: dict[int, Any], **keywords: Any) -> fx.Node:
    """The same call with some positional arguments changed; those before them must be written."""
    args = list(node.args)
    for position, value in changes.items():
        args += [None] * (position + 1 - len(args))
        args[position] = value
    return edit.call(node.target, *args, **{**node.kwargs, **keywords})


def normed_again(edit: Edit, node: fx.Node, changes: dict[int, Any]) -> fx.Node:
    """A batch norm with some arguments changed, from its first value."""
    return edit.call(operator.getitem, with_arguments(edit, source(node), changes), 0)


def changed_parameter(edit: Edit, node: fx.Node, position: int, change: Callable[[Tensor], Tensor]) -> fx.Node:
    """The same call with one stored tensor changed, in float64."""
    return with_arguments(edit, node, {position: stored(edit, source(node, position), change)})


def stored(edit: Edit, node: fx.Node, change: Callable[[Tensor], Tensor]) -> fx.Node:
    """A changed copy of a stored tensor."""
    return edit.parameter(f"{node.name}.mutated", change(edit.constant(node)), like=node)


def through(edit: Edit, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The value rounded to a smaller dtype and cast back."""
    small = edit.call(aten._to_copy.default, node, dtype=dtype)
    return edit.call(aten._to_copy.default, small, dtype=recorded(node).dtype)


def shortened(edit: Edit, node: fx.Node, bits: int) -> fx.Node:
    """The value without its last bits, by Veltkamp's splitting; float64 loses as many of its own."""
    large = edit.call(aten.mul.Tensor, node, float(2**bits + 1))
    return edit.call(aten.sub.Tensor, large, edit.call(aten.sub.Tensor, large, node))


def size(edit: Edit, node: fx.Node, axis: int) -> fx.Node:
    """A size at run time; that of the anchor is read from a copy, because the claim rewires its readers."""
    return edit.call(aten.sym_size.int, again(edit, node) if node is edit.anchor else node, axis)


def number(edit: Edit, value: Any, like: fx.Node) -> fx.Node:
    """A size as a tensor without axes."""
    return edit.call(aten.scalar_tensor.default, value, dtype=recorded(like).dtype)


def scaled_where(edit: Edit, node: fx.Node, switch: fx.Node, share: float = 1e-3) -> fx.Node:
    """The node's value times 1 + share * switch, for a switch of 0 and 1."""
    value = again(edit, node)
    factor = edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, switch, share), 1.0)
    return edit.call(aten.mul.Tensor, value, factor)


def replaced_where(edit: Edit, condition: fx.Node, wrong: fx.Node, right: fx.Node) -> fx.Node:
    return edit.call(aten.where.self, condition, wrong, right)


def constant_like(edit: Edit, node: fx.Node, value: float) -> fx.Node:
    return edit.call(aten.full_like.default, node, value)


def positions(edit: Edit, node: fx.Node, axis: int) -> fx.Node:
    """0, 1, 2, ... along one axis of a tensor, of a shape that broadcasts against it."""
    count = edit.call(aten.arange.default, size(edit, node, axis))
    following = len(shape(node)) - 1 - axis % len(shape(node))
    for _ in range(following):
        count = edit.call(aten.unsqueeze.default, count, -1)
    return count


def attention_scores(edit: Edit, node: fx.Node, *, mask: fx.Node | None) -> fx.Node:
    """Scaled scores of an attention node with the given mask added or applied."""
    query, key = source(node), source(node, 1)
    scale = node.kwargs.get("scale") or shape(query)[-1] ** -0.5
    product = edit.call(aten.matmul.default, query, edit.call(aten.transpose.int, key, -2, -1))
    scores = edit.call(aten.mul.Tensor, product, scale)
    if mask is None:
        return scores
    if recorded(mask).dtype is torch.bool:
        return edit.call(aten.where.ScalarOther, mask, scores, float("-inf"))
    return edit.call(aten.add.Tensor, scores, mask)


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask of an attention node."""
    found = argument(node, 3)
    return found if isinstance(found, fx.Node) else None


def weighted_values(edit: Edit, node: fx.Node, weights: fx.Node) -> fx.Node:
    """The product of attention weights and values."""
    assert node.target is ATTENTION
    return edit.call(aten.matmul.default, weights, source(node, 2))


def padded(edit: Edit, image: fx.Node, before: int, *, replicated: bool = False) -> fx.Node:
    """An image with ``before`` rows and columns more at the start and one at the end: zeros, or its border.

    Put together from slices: ``aten.pad`` fixes free sizes to those of the example.
    """
    for axis in (2, 3):
        edges = [edit.call(aten.slice.Tensor, image, axis, 0, 1), edit.call(aten.slice.Tensor, image, axis, -1, 2**62)]
        if not replicated:
            edges = [edit.call(aten.zeros_like.default, edge) for edge in edges]
        image = edit.call(aten.cat.default, [*edges[:1] * before, image, edges[1]], axis)
    return image
