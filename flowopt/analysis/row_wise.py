"""Which operators compute each row along an axis alone.

An operator is row-wise along an axis of its output when selected rows of some of its inputs give those rows of the
output. The axis may stand alone, or be merged with others: a product of matrices with (batch * tokens) rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from flowopt.analysis.moved_rows import TUPLE_NORMS, is_move, moved_rows
from flowopt.analysis.rows import Path, Place, Read, Rows, RowWise, aligned, argument, axes_of, rank_of, read_at
from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.ir.randomness import draws_random_numbers

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default
_NORMS = {_aten.layer_norm.default, _aten.rms_norm.default}
_CAT = _aten.cat.default
# Operator to its first factor; what stands before that is added, and broadcast.
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.matmul.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
COSTLY = frozenset({_aten.linear.default, _ATTENTION, *_NORMS, *TUPLE_NORMS, *_PRODUCTS})
"Operators that are worth computing for fewer rows."
# Without the tag of elementwise operators.
_ELEMENTWISE = {
    *(_aten.where.self, _aten.where.Scalar, _aten.where.ScalarSelf, _aten.where.ScalarOther),
    *(_aten._to_copy.default, _aten.to.dtype, _aten.contiguous.default, _aten.alias.default),
    *(_aten.detach.default, _aten.lift_fresh_copy.default, _aten.dropout.default),
    *(_aten.full_like.default, _aten.zeros_like.default, _aten.ones_like.default),
}
_SOFTMAXES = {_aten.softmax.int, _aten._softmax.default, _aten.log_softmax.int, _aten._log_softmax.default}
# They work along their second argument, or the last axis.
_ALONG = {
    *_SOFTMAXES,
    *(_aten.flip.default, _aten.glu.default, _aten.cumsum.default, _aten.cumprod.default),
    _aten.logcumsumexp.default,
}
# Operator to the argument that says whether its axes stay; they are named by the second.
_REDUCTIONS: Mapping[Any, int] = {
    **dict.fromkeys((_aten.mean.dim, _aten.sum.dim_IntList, _aten.amax.default, _aten.amin.default), 2),
    **dict.fromkeys((_aten.any.dim, _aten.all.dim, _aten.prod.dim_int, _aten.logsumexp.default), 2),
    **dict.fromkeys((_aten.argmax.default, _aten.argmin.default, _aten.var.correction, _aten.std.correction), 2),
    **dict.fromkeys((_aten.var.dim, _aten.std.dim), 3),
}
# Input, weight, bias, stride, padding, dilation and, of the general one, whether it is transposed.
_CONVOLUTIONS = {_aten.conv1d.default, _aten.convolution.default}


def row_wise(node: fx.Node, place: Place, rows: Rows) -> RowWise | None:
    """How ``node`` computes selected rows of its output alone; None when it is not row-wise there.

    Args:
        node: the operator; of one with several outputs, ``place`` is that of all of them.
        place: of the rows in its output.
        rows: which part is selected.
    """
    if node.op != "call_function" or draws_random_numbers(node) or _has_named_operand(node):
        return None
    if is_move(node):
        return moved_rows(node, place, rows)
    reads = _computed(node, place)
    return None if reads is None else RowWise(reads)


def _computed(node: fx.Node, place: Place) -> tuple[Read, ...] | None:
    target, args = node.target, node.args
    if target in _ELEMENTWISE or (isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags):
        return aligned(node, place, [((at,), a) for at, a in enumerate(args)])
    if target is _aten.linear.default:
        is_plain = rank_of(args[1]) == 2 and all(rank_of(bias) < 2 for bias in args[2:])
        return _first(node, place) if is_plain and place.axis < rank_of(node) - 1 else None
    if target in _PRODUCTS:
        return _product(node, place, _PRODUCTS[target])
    if target in _NORMS or target in TUPLE_NORMS:
        return _first(node, place) if place.axis < rank_of(args[0]) - len(axes_of(args[1])) else None
    if target in _ALONG:
        return _first(node, place) if place.axis not in axes_of(argument(node, 1, -1), rank_of(node)) else None
    if target in _REDUCTIONS:
        return _reduced(node, place)
    if target in _CONVOLUTIONS:
        return _first(node, place) if place.axis >= 2 and _is_pointwise(node) else None
    if target is _ATTENTION:
        return _attention(node, place)
    if target is _aten.embedding.default:
        return read_at((1,), args[1], place) if place.axis < rank_of(args[1]) else None
    if target is _CAT:
        return _concatenated(node, place)
    return None


def _concatenated(node: fx.Node, place: Place) -> tuple[Read, ...] | None:
    parts: Any = node.args[0]
    is_along = axes_of(argument(node, 1, 0), rank_of(node)) == [place.axis]
    # An empty vector may stand among tensors of any rank.
    if is_along or any(rank_of(part) != rank_of(node) for part in parts):
        return None
    return aligned(node, place, [((0, at), part) for at, part in enumerate(parts)])


def _product(node: fx.Node, place: Place, first: int) -> tuple[Read, ...] | None:
    """Rows of the first factor, or matrices of a batch of both; columns are of the second factor, and stay."""
    left, right = node.args[first : first + 2]
    rank = rank_of(node)
    if min(rank_of(left), rank_of(right)) < 2 or place.axis == rank - 1:
        return None
    factors = [((first,), left), ((first + 1,), right)]
    if place.axis == rank - 2:
        factors = factors[:1]
    return aligned(node, place, [*[((at,), node.args[at]) for at in range(first)], *factors])


def _reduced(node: fx.Node, place: Place) -> tuple[Read, ...] | None:
    rank = rank_of(node.args[0])
    named = axes_of(node.args[1] if len(node.args) > 1 else None, rank)
    keeps = bool(argument(node, _REDUCTIONS[node.target], False, "keepdim"))
    kept = list(range(rank)) if keeps else [a for a in range(rank) if a not in named]
    is_other = bool(named) and kept[place.axis] not in named
    return read_at((0,), node.args[0], place.on(kept[place.axis])) if is_other else None


def _is_pointwise(node: fx.Node) -> bool:
    """True for a convolution that computes each place of a batch of sequences or images alone."""
    source, weight = node.args[:2]
    rank = rank_of(weight)
    is_wide = any(static_size(weight, axis) != 1 for axis in range(2, rank))
    stride, padding = argument(node, 3, 1, "stride"), argument(node, 4, 0, "padding")
    is_general = node.target is _aten.convolution.default
    is_transposed = is_general and bool(argument(node, 6, False, "transposed"))
    moves = _listed(stride) != {1} or _listed(padding) != {0}
    return rank_of(source) == rank and not (is_wide or moves or is_transposed)


def _listed(number: Any) -> set[Any]:
    return set(number) if isinstance(number, (list, tuple)) else {number}


def _attention(node: fx.Node, place: Place) -> tuple[Read, ...] | None:
    """Queries, each of which meets all keys; a causal one meets those before it, and has to know its place."""
    is_causal, dropout = argument(node, 5, False, "is_causal"), argument(node, 4, 0.0, "dropout_p")
    query, rank = node.args[0], rank_of(node)
    if is_causal or dropout or place.axis != rank - 2 or not place.stands_alone or rank_of(query) != rank:
        return None
    position: Path = ("attn_mask",) if "attn_mask" in node.kwargs else (3,)
    mask = argument(node, 3, None, "attn_mask")
    return aligned(node, place, [((0,), query), (position, mask)])


def _has_named_operand(node: fx.Node) -> bool:
    """Operands are looked for by position; a mask is known by its name too."""
    return any(recorded_tensor(n) is not None for name, n in node.kwargs.items() if name != "attn_mask")


def _first(node: fx.Node, place: Place) -> tuple[Read, ...]:
    return read_at((0,), node.args[0], place)
