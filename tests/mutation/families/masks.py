"""Masks that hide too much, too little or too weakly."""

import torch
from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import attention_scores, mask_of, number, positions, size, weighted_values, with_arguments
from tests.mutation.kind import mutates
from tests.mutation.reading import aten, calls, is_boolean, is_free, is_masked, recorded, shape, source


def _mask(node: fx.Node) -> fx.Node:
    mask = mask_of(node)
    assert mask is not None
    return mask


def _masks_by_choice(node: fx.Node) -> bool:
    return is_masked(node) and is_boolean(_mask(node))


def _with_mask(edit: Edit, node: fx.Node, mask: fx.Node) -> fx.Node:
    return with_arguments(edit, node, {3: mask})


@mutates(is_masked)
def mask_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """attention with mask -> without."""
    return with_arguments(edit, node, {3: None})


@mutates(_masks_by_choice)
def mask_inverted(edit: Edit, node: fx.Node) -> fx.Node:
    """A mask of what is visible -> of what is hidden."""
    return _with_mask(edit, node, edit.call(aten.logical_not.default, _mask(node)))


def _weak_mask(edit: Edit, node: fx.Node, hidden: float) -> fx.Node:
    visible = edit.call(aten._to_copy.default, _mask(node), dtype=recorded(source(node)).dtype)
    score = edit.call(aten.mul.Tensor, edit.call(aten.rsub.Scalar, visible, 1.0), hidden)
    return _with_mask(edit, node, score)


@mutates(_masks_by_choice)
def mask_of_ten_thousand(edit: Edit, node: fx.Node) -> fx.Node:
    """-inf for a hidden position -> -1e4."""
    return _weak_mask(edit, node, -1e4)


@mutates(_masks_by_choice)
def mask_of_ten(edit: Edit, node: fx.Node) -> fx.Node:
    """-inf for a hidden position -> -10."""
    return _weak_mask(edit, node, -10.0)


@mutates(_masks_by_choice)
def mask_of_the_lowest_float(edit: Edit, node: fx.Node) -> fx.Node:
    """-inf for a hidden position -> the lowest float, which differs in rows that see nothing."""
    visible = edit.call(aten.zeros_like.default, _mask(node), dtype=recorded(source(node)).dtype)
    lowest = torch.finfo(torch.float32).min
    return _with_mask(edit, node, edit.call(aten.where.ScalarOther, _mask(node), visible, lowest))


@mutates(_masks_by_choice)
def scores_multiplied_by_the_mask(edit: Edit, node: fx.Node) -> fx.Node:
    """A hidden score -> zero."""
    scores = edit.call(aten.mul.Tensor, attention_scores(edit, node, mask=None), _mask(node))
    return weighted_values(edit, node, edit.call(aten.softmax.int, scores, -1))


@mutates(_masks_by_choice)
def weights_multiplied_by_the_mask(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax of visible scores -> softmax of all, then hidden weights made zero."""
    weights = edit.call(aten.softmax.int, attention_scores(edit, node, mask=None), -1)
    return weighted_values(edit, node, edit.call(aten.mul.Tensor, weights, _mask(node)))


@mutates(_masks_by_choice)
def mask_transposed(edit: Edit, node: fx.Node) -> fx.Node:
    """(query, key) -> (key, query)."""
    return _with_mask(edit, node, edit.call(aten.transpose.int, _mask(node), -2, -1))


@mutates(is_masked)
def mask_of_the_first_sample(edit: Edit, node: fx.Node) -> fx.Node:
    """A mask per sample -> that of sample 0."""
    first = edit.call(aten.slice.Tensor, _mask(node), 0, 0, 1)
    like = edit.call(aten.expand.default, first, [size(edit, source(node), 0), -1, -1, -1])
    return _with_mask(edit, node, like)


@mutates(is_masked)
def hidden_keys_still_counted(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax over visible keys -> weights that sum to visible / all."""
    again = edit.repeat(node, {})
    mask = _mask(node)
    if recorded(mask).dtype is torch.bool:
        visible = edit.call(aten._to_copy.default, mask, dtype=recorded(node).dtype)
    else:
        shown = edit.call(aten.gt.Scalar, mask, -1e30)
        visible = edit.call(aten._to_copy.default, shown, dtype=recorded(node).dtype)
    return edit.call(aten.mul.Tensor, again, edit.call(aten.mean.dim, visible, [-1], True))


_padding = calls(
    aten._to_copy.default,
    where=lambda n: n.kwargs.get("dtype") is torch.bool and source(n).op == "placeholder" and is_free(n, 1),
)


def _counted(edit: Edit, node: fx.Node) -> fx.Node:
    return edit.call(aten.sum.dim_IntList, node.args[0], [1], True)


@mutates(_padding)
def padding_assumed_on_the_right(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> the first n positions, n being its sum."""
    return edit.call(aten.lt.Tensor, positions(edit, node, 1), _counted(edit, node))


@mutates(_padding)
def padding_assumed_on_the_left(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> the last n positions, n being its sum."""
    length = size(edit, node, 1)
    hidden = edit.call(aten.rsub.Scalar, _counted(edit, node), length)
    return edit.call(aten.ge.Tensor, positions(edit, node, 1), hidden)


@mutates(_padding)
def padding_assumed_without_holes(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> everything from the first to the last visible position."""
    visible = source(node)
    before = edit.call(aten.cumsum.default, visible, 1)
    turned = edit.call(aten.flip.default, visible, [1])
    after = edit.call(aten.flip.default, edit.call(aten.cumsum.default, turned, 1), [1])
    inside = edit.call(aten.mul.Tensor, before, after)
    return edit.call(aten.gt.Scalar, inside, 0)


@mutates(_padding)
def first_position_always_visible(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> mask that shows position 0."""
    is_first = edit.call(aten.eq.Scalar, positions(edit, node, 1), 0)
    return edit.call(aten.logical_or.default, edit.repeat(node, {}), is_first)


@mutates(_padding)
def last_position_always_hidden(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> mask that hides the last position of sequences of three and more."""
    last = number(edit, size(edit, node, 1), source(node))
    edge = edit.call(aten.clamp.default, edit.call(aten.sub.Tensor, last, 1), 2)
    is_before = edit.call(aten.lt.Tensor, positions(edit, node, 1), edge)
    return edit.call(aten.logical_and.default, edit.repeat(node, {}), is_before)


@mutates(_padding)
def empty_mask_shown(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> all ones for samples that hide everything."""
    is_empty = edit.call(aten.eq.Scalar, _counted(edit, node), 0)
    return edit.call(aten.logical_or.default, edit.repeat(node, {}), is_empty)


@mutates(_padding)
def mask_ignored(edit: Edit, node: fx.Node) -> fx.Node:
    """mask -> all ones."""
    return edit.call(aten.ge.Scalar, node.args[0], 0)


@mutates(calls(aten.le.Tensor))
def causal_without_itself(edit: Edit, node: fx.Node) -> fx.Node:
    """key <= query -> key < query."""
    return edit.call(aten.lt.Tensor, *node.args)


@mutates(calls(aten.le.Tensor))
def causal_with_the_next(edit: Edit, node: fx.Node) -> fx.Node:
    """key <= query -> key <= query + 1."""
    return edit.call(aten.le.Tensor, node.args[0], edit.call(aten.add.Tensor, node.args[1], 1))


@mutates(calls(aten.le.Tensor))
def causal_with_a_window(edit: Edit, node: fx.Node) -> fx.Node:
    """key <= query -> query - 16 < key <= query, as sliding windows do."""
    start = edit.call(aten.sub.Tensor, node.args[1], 16)
    return edit.call(aten.logical_and.default, edit.repeat(node, {}), edit.call(aten.gt.Tensor, node.args[0], start))


@mutates(calls(aten.le.Tensor))
def causal_both_ways(edit: Edit, node: fx.Node) -> fx.Node:
    """key <= query -> everything."""
    return edit.call(aten.logical_or.default, edit.repeat(node, {}), edit.call(aten.ge.Tensor, *node.args))


def _joins_causal_and_padding(node: fx.Node) -> bool:
    return node.target is aten.__and__.Tensor and len(shape(node)) == 4 and is_free(node, 0) and is_free(node, -1)


@mutates(_joins_causal_and_padding)
def padding_forgotten(edit: Edit, node: fx.Node) -> fx.Node:
    """visible and not padded -> visible."""
    return edit.call(aten.__and__.Tensor, node.args[0], edit.call(aten.ones_like.default, node.args[1]))


@mutates(calls(aten.where.ScalarOther, where=lambda n: isinstance(n.args[2], float) and n.args[2] < -1e30))
def hidden_score_of_ten_thousand(edit: Edit, node: fx.Node) -> fx.Node:
    """The lowest float for a hidden position -> -1e4."""
    return with_arguments(edit, node, {2: -1e4})


@mutates(calls(aten.where.ScalarOther, where=lambda n: isinstance(n.args[2], float) and n.args[2] < -1e30))
def hidden_score_infinite(edit: Edit, node: fx.Node) -> fx.Node:
    """The lowest float for a hidden position -> -inf, which is NaN in rows that see nothing."""
    return with_arguments(edit, node, {2: float("-inf")})


@mutates(calls(aten.where.ScalarOther, where=lambda n: isinstance(n.args[2], float) and n.args[2] < -1e30))
def score_added_to_hidden(edit: Edit, node: fx.Node) -> fx.Node:
    """A hidden position's score -> the score minus 1e4."""
    lowered = edit.call(aten.sub.Tensor, node.args[1], 1e4)
    return edit.call(aten.where.self, node.args[0], node.args[1], lowered)
