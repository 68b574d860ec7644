"""Digits that are lost on the way, in float32 alone: the float64 twin cannot see most of these."""

import torch
from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, constant_like, replaced_where, shortened, through, with_arguments
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import (
    ATTENTION,
    aten,
    calls,
    is_activation,
    is_masked,
    is_weighted,
    recorded,
    shape,
    source,
)

_half = torch.float16
_brain = torch.bfloat16


@mutates(is_activation, most=GENERIC)
def value_through_half(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y rounded to half precision."""
    return through(edit, again(edit, node), _half)


@mutates(is_activation, most=GENERIC)
def value_through_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y rounded to bfloat16."""
    return through(edit, again(edit, node), _brain)


@mutates(is_activation, most=GENERIC)
def last_channel_through_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y with its last column rounded to bfloat16."""
    value, last = again(edit, node), shape(node)[-1]
    parts = [
        edit.call(aten.slice.Tensor, value, -1, 0, -1),
        through(edit, edit.call(aten.slice.Tensor, value, -1, -1, 2**62), _brain),
    ]
    return edit.call(aten.cat.default, parts, -1) if last != 1 else through(edit, value, _brain)


@mutates(is_activation, most=GENERIC)
def small_values_through_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y rounded to bfloat16 where |y| < 0.1."""
    value = again(edit, node)
    is_small = edit.call(aten.lt.Scalar, edit.call(aten.abs.default, value), 0.1)
    return replaced_where(edit, is_small, through(edit, value, _brain), value)


def _products_in(edit: Edit, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    args = [edit.call(aten._to_copy.default, a, dtype=dtype) if isinstance(a, fx.Node) else a for a in node.args]
    small = edit.call(node.target, *args, **node.kwargs)
    return edit.call(aten._to_copy.default, small, dtype=recorded(node).dtype)


@mutates(is_weighted)
def product_in_half(edit: Edit, node: fx.Node) -> fx.Node:
    """W x -> W x in half precision."""
    return _products_in(edit, node, _half)


@mutates(is_weighted)
def product_in_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """W x -> W x in bfloat16."""
    return _products_in(edit, node, _brain)


@mutates(calls(aten.layer_norm.default))
def norm_in_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """layer_norm -> layer_norm in bfloat16."""
    small = [edit.call(aten._to_copy.default, a, dtype=_brain) if isinstance(a, fx.Node) else a for a in node.args]
    made = edit.call(aten.layer_norm.default, *small)
    return edit.call(aten._to_copy.default, made, dtype=recorded(node).dtype)


@mutates(is_weighted)
def product_in_tf32(edit: Edit, node: fx.Node) -> fx.Node:
    """W x -> W x with both factors cut to eleven bits."""
    return with_arguments(edit, node, {i: shortened(edit, source(node, i), 13) for i in (0, 1)})


@mutates(is_activation, most=GENERIC)
def ten_bits_lost(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y without its last ten bits."""
    return shortened(edit, again(edit, node), 10)


@mutates(is_activation, most=GENERIC)
def eight_bits_lost(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y without its last eight bits."""
    return shortened(edit, again(edit, node), 8)


@mutates(is_activation, most=GENERIC)
def constant_added_and_taken_away(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> (y + 1000) - 1000."""
    return edit.call(aten.sub.Tensor, edit.call(aten.add.Tensor, again(edit, node), 1000.0), 1000.0)


@mutates(calls(ATTENTION, where=lambda node: not is_masked(node)))
def attention_in_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """attention -> attention in bfloat16."""
    return _products_in(edit, node, _brain)


@mutates(calls(ATTENTION))
def attention_values_in_half(edit: Edit, node: fx.Node) -> fx.Node:
    """attention(q, k, v) -> attention(q, k, v rounded to half precision)."""
    return with_arguments(edit, node, {2: through(edit, source(node, 2), _half)})


@mutates(calls(aten.mean.dim))
def mean_in_half(edit: Edit, node: fx.Node) -> fx.Node:
    """mean(x) -> mean of x rounded to half precision, which overflows at 65504."""
    return with_arguments(edit, node, {0: through(edit, source(node), _half)})


@mutates(calls(aten.cos.default, aten.sin.default))
def angle_in_half(edit: Edit, node: fx.Node) -> fx.Node:
    """cos(x) -> cos(x rounded to half precision)."""
    return with_arguments(edit, node, {0: through(edit, source(node), _half)})


@mutates(calls(aten.cos.default, aten.sin.default))
def angle_wrapped_roughly(edit: Edit, node: fx.Node) -> fx.Node:
    """cos(x) -> cos(x mod 6.2832), with five digits of two pi."""
    return with_arguments(edit, node, {0: edit.call(aten.remainder.Scalar, node.args[0], 6.2832)})


def _truncates(node: fx.Node) -> bool:
    is_cast = node.target is aten._to_copy.default and node.kwargs.get("dtype") is torch.int64
    return is_cast and recorded(source(node)).is_floating_point()


@mutates(lambda node: _truncates(node) and source(node).target is aten.mul.Tensor)
def cast_before_scaling(edit: Edit, node: fx.Node) -> fx.Node:
    """int(c x) -> c int(x)."""
    scaled = source(node)
    return edit.call(aten.mul.Tensor, edit.call(aten._to_copy.default, scaled.args[0], dtype=torch.int64), 4)


@mutates(_truncates)
def rounded_for_truncated(edit: Edit, node: fx.Node) -> fx.Node:
    """int(x) -> int(round(x))."""
    rounded = edit.call(aten.round.default, node.args[0])
    return edit.call(aten._to_copy.default, rounded, dtype=torch.int64)


@mutates(calls(aten.log.default))
def logarithm_in_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """log(x) -> log(x) rounded to bfloat16."""
    return through(edit, again(edit, node), _brain)


@mutates(calls(aten.cumsum.default))
def running_sum_in_half(edit: Edit, node: fx.Node) -> fx.Node:
    """cumsum(x) -> cumsum(x) rounded to half precision."""
    return through(edit, again(edit, node), _half)


@mutates(is_activation, most=GENERIC)
def tiny_values_flushed(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> 0 where |y| < 1e-5."""
    value = again(edit, node)
    is_tiny = edit.call(aten.lt.Scalar, edit.call(aten.abs.default, value), 1e-5)
    return replaced_where(edit, is_tiny, constant_like(edit, value, 0.0), value)
