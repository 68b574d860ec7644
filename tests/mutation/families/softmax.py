"""Attention and softmax written out with a mistake."""

import torch
from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import attention_scores, mask_of, through, weighted_values
from tests.mutation.kind import mutates
from tests.mutation.reading import ATTENTION, aten, calls, is_boolean, is_masked, source

_attention = calls(ATTENTION)
_unmasked = calls(ATTENTION, where=lambda node: not is_masked(node))
_plain = calls(aten.softmax.int)


def _scores(edit: Edit, node: fx.Node) -> fx.Node:
    return attention_scores(edit, node, mask=mask_of(node))


def _shifted(edit: Edit, scores: fx.Node, *, start: float | None = None) -> fx.Node:
    largest = edit.call(aten.amax.default, scores, [-1], True)
    if start is not None:
        largest = edit.call(aten.clamp.default, largest, start)
    return edit.call(aten.sub.Tensor, scores, largest)


def _normalised(edit: Edit, powers: fx.Node, extra: float = 0.0) -> fx.Node:
    total = edit.call(aten.sum.dim_IntList, powers, [-1], True)
    total = edit.call(aten.add.Tensor, total, extra) if extra else total
    return edit.call(aten.div.Tensor, powers, total)


def _exp(edit: Edit, value: fx.Node) -> fx.Node:
    return edit.call(aten.exp.default, value)


@mutates(_attention)
def softmax_without_shift(edit: Edit, node: fx.Node) -> fx.Node:
    """e^(s - max) / sum -> e^s / sum, which overflows."""
    return weighted_values(edit, node, _normalised(edit, _exp(edit, _scores(edit, node))))


@mutates(_attention)
def softmax_shift_from_zero(edit: Edit, node: fx.Node) -> fx.Node:
    """max(s) -> max(s, 0), which underflows where all scores are very negative."""
    powers = _exp(edit, _shifted(edit, _scores(edit, node), start=0.0))
    return weighted_values(edit, node, _normalised(edit, powers))


@mutates(_unmasked)
def softmax_over_queries(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax over keys -> over queries."""
    return weighted_values(edit, node, edit.call(aten.softmax.int, _scores(edit, node), -2))


@mutates(_attention)
def softmax_plus_one(edit: Edit, node: fx.Node) -> fx.Node:
    """e^s / sum -> e^s / (1 + sum)."""
    powers = _exp(edit, _shifted(edit, _scores(edit, node)))
    return weighted_values(edit, node, _normalised(edit, powers, 1.0))


@mutates(_attention)
def softmax_with_epsilon(edit: Edit, node: fx.Node) -> fx.Node:
    """e^s / sum -> e^s / (sum + 1e-6)."""
    powers = _exp(edit, _shifted(edit, _scores(edit, node)))
    return weighted_values(edit, node, _normalised(edit, powers, 1e-6))


@mutates(_unmasked)
def softmax_tail_clamped(edit: Edit, node: fx.Node) -> fx.Node:
    """e^(s - max) -> e^max(s - max, -15)."""
    tail = edit.call(aten.clamp.default, _shifted(edit, _scores(edit, node)), -15.0)
    return weighted_values(edit, node, _normalised(edit, _exp(edit, tail)))


@mutates(_unmasked)
def softmax_of_half_scores(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(s) -> softmax(s rounded to half precision)."""
    rounded = through(edit, _scores(edit, node), torch.float16)
    return weighted_values(edit, node, edit.call(aten.softmax.int, rounded, -1))


@mutates(_attention)
def softmax_weights_in_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(s) v -> (softmax(s) rounded to bfloat16) v."""
    weights = edit.call(aten.softmax.int, _scores(edit, node), -1)
    return weighted_values(edit, node, through(edit, weights, torch.bfloat16))


@mutates(_attention)
def softmax_of_base_two(edit: Edit, node: fx.Node) -> fx.Node:
    """e^s -> 2^(1.4427 s), with four digits of log2(e)."""
    shifted = edit.call(aten.mul.Tensor, _shifted(edit, _scores(edit, node)), 1.4427)
    return weighted_values(edit, node, _normalised(edit, edit.call(aten.exp2.default, shifted)))


@mutates(_attention)
def scale_after_the_softmax(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(c s) v -> softmax(c s) (c v)."""
    scale = node.kwargs.get("scale") or 0.25
    assert isinstance(scale, float)
    factor = scale if scale != 1.0 else 0.9
    return edit.call(aten.mul.Tensor, edit.repeat(node, {}), factor)


@mutates(_attention)
def linear_attention(edit: Edit, node: fx.Node) -> fx.Node:
    """e^(q k) -> (elu(q) + 1) (elu(k) + 1), normalised."""
    query, key = (edit.call(aten.add.Tensor, edit.call(aten.elu.default, source(node, i)), 1.0) for i in (0, 1))
    scores = edit.call(aten.matmul.default, query, edit.call(aten.transpose.int, key, -2, -1))
    return weighted_values(edit, node, _normalised(edit, scores))


@mutates(_attention)
def smallest_weight_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(s) -> softmax(s) without its smallest weight, as top-k attention does."""
    weights = edit.call(aten.softmax.int, _scores(edit, node), -1)
    least = edit.call(aten.amin.default, weights, [-1], True)
    is_kept = edit.call(aten.gt.Tensor, weights, least)
    return weighted_values(edit, node, edit.call(aten.where.ScalarOther, is_kept, weights, 0.0))


@mutates(_attention)
def rare_weights_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(s) -> softmax(s) without weights below 1e-4."""
    weights = edit.call(aten.softmax.int, _scores(edit, node), -1)
    is_kept = edit.call(aten.ge.Scalar, weights, 1e-4)
    return weighted_values(edit, node, edit.call(aten.where.ScalarOther, is_kept, weights, 0.0))


@mutates(_attention)
def scores_capped(edit: Edit, node: fx.Node) -> fx.Node:
    """s -> 50 tanh(s / 50), as some models cap them."""
    scores = attention_scores(edit, node, mask=None)
    capped = edit.call(aten.mul.Tensor, edit.call(aten.tanh.default, edit.call(aten.div.Tensor, scores, 50.0)), 50.0)
    mask = mask_of(node)
    if mask is not None and is_boolean(mask):
        capped = edit.call(aten.where.ScalarOther, mask, capped, float("-inf"))
    elif mask is not None:
        capped = edit.call(aten.add.Tensor, capped, mask)
    return weighted_values(edit, node, edit.call(aten.softmax.int, capped, -1))


@mutates(calls(ATTENTION, where=lambda node: is_masked(node) and is_boolean(mask_of(node))))
def softmax_of_nothing(edit: Edit, node: fx.Node) -> fx.Node:
    """Attention -> softmax written out, which is NaN in rows that see nothing."""
    return weighted_values(edit, node, edit.call(aten.softmax.int, _scores(edit, node), -1))


@mutates(_plain)
def plain_softmax_without_shift(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(x) -> e^x / sum(e^x)."""
    return _normalised(edit, _exp(edit, source(node)))


@mutates(_plain)
def plain_softmax_shift_of_the_first(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(x) -> e^(x - x[0]) / sum, which overflows where the first is small."""
    first = edit.call(aten.slice.Tensor, source(node), -1, 0, 1)
    return _normalised(edit, _exp(edit, edit.call(aten.sub.Tensor, source(node), first)))


@mutates(_plain)
def sigmoid_for_softmax(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax(x) -> sigmoid(x)."""
    return edit.call(aten.sigmoid.default, source(node))
