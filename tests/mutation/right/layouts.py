"""The same numbers in another order or another layout, and round trips that change no bit."""

from typing import Any, Final

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.rewrite import Edit, Exactness
from tests.goals.planted_right import MoveTransposes
from tests.mutation.right.kind import Build, Kind, borrowed, built
from tests.mutation.right.term import Term, arguments, aten, call, is_call, is_float, is_stored, joined, raw_arguments

_BITWISE = Exactness.BITWISE
# One float tensor in, the same shape out, every element by itself.
_POINTWISE = (
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.hardtanh.default,
    aten.softplus.default,
    aten.pow.Tensor_Scalar,
    aten.exp.default,
    aten.neg.default,
    aten.rsqrt.default,
)
# Every row of the last axis by itself.
_ROWWISE = (aten.layer_norm.default, aten.rms_norm.default, aten.linear.default)
_CONV2D, _BATCH_NORM = aten.conv2d.default, aten._native_batch_norm_legit_no_training.default
_TRIPS = (*_POINTWISE, *_ROWWISE, _CONV2D, aten.add.Tensor, aten.mul.Tensor, aten.scaled_dot_product_attention.default)
_CAT, _EMBEDDING = aten.cat.default, aten.embedding.default


def _first(edit: Edit, node: fx.Node) -> Term:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return Term(edit, first)


def _repeated(edit: Edit, node: fx.Node, x: Term, changed: Term) -> Term:
    return Term(edit, edit.repeat(node, {x.node: changed.node}))


def _transposed_operator(edit: Edit, node: fx.Node) -> Term:
    """f(x) = f(x^T)^T."""
    x = _first(edit, node)
    return _repeated(edit, node, x, x.transposed()).transposed()


def _flattened_operator(edit: Edit, node: fx.Node) -> Term:
    """f over one long axis."""
    x = _first(edit, node)
    return _repeated(edit, node, x, x.reshaped([-1])).reshaped(x.shape())


def _turned_batch(edit: Edit, node: fx.Node) -> Term:
    """f of the samples in the opposite order, turned back."""
    x = _first(edit, node)
    return _repeated(edit, node, x, x.op(aten.flip.default, [0])).op(aten.flip.default, [0])


def _first_sample_apart(edit: Edit, node: fx.Node) -> Term:
    """f of the first sample and of the others, joined; the others may be none."""
    x = _first(edit, node)
    return joined([_repeated(edit, node, x, x.part(0, *ends)) for ends in ((0, 1), (1, 2**62))], 0)


def _rows_together(edit: Edit, node: fx.Node) -> Term:
    """f over (rows, features)."""
    x = _first(edit, node)
    result = _repeated(edit, node, x, x.reshaped([-1, x.size(-1)]))
    return result.reshaped([*x.shape()[:-1], static_size(node, -1)])


def _channels_last(edit: Edit, node: fx.Node) -> Term:
    """f in the channels-last layout."""
    x = _first(edit, node)
    return _repeated(edit, node, x, x.op(aten.clone.default, memory_format=torch.channels_last)).contiguous()


def _selected_first(edit: Edit, node: fx.Node) -> Term:
    """One row of f(x) is f of that row."""
    inner = _first(edit, node)
    x = _first(edit, inner.node)
    return _repeated(edit, inner.node, x, x.op(aten.select.int, *node.args[1:]))


def _selects_a_row(node: fx.Node) -> bool:
    inner, axis = node.args[:2]
    value = recorded_tensor(inner)
    return is_call(inner, *_POINTWISE, *_ROWWISE) and value is not None and axis in range(value.dim() - 1)


def _round_trip(there: Any, back: Any, *arguments_back: Any) -> Build:
    """The operator on an input that went there and back again, as views or as exact negatives."""

    def build(edit: Edit, node: fx.Node) -> Term:
        x = _first(edit, node)
        return _repeated(edit, node, x, there(x).op(back, *arguments_back))

    return build


def _whole_slice(edit: Edit, node: fx.Node) -> Term:
    x = _first(edit, node)
    return _repeated(edit, node, x, x.part(-1, 0))


def _times_one(edit: Edit, node: fx.Node) -> Term:
    x = _first(edit, node)
    return _repeated(edit, node, x, x * 1.0)


def _rolled_concat(edit: Edit, node: fx.Node) -> Term:
    """cat(a, b) = cat(b, a), rolled by the size of a."""
    a = raw_arguments(node)
    left, right = (Term(edit, n) for n in a["tensors"])
    return joined([right, left], a["dim"]).op(aten.roll.default, [static_size(left.node, a["dim"])], [a["dim"]])


def _padded_concat(edit: Edit, node: fx.Node) -> Term:
    """cat(a, b) = (a, 0) + (0, b)."""
    a = raw_arguments(node)
    left, right = (Term(edit, n) for n in a["tensors"])
    before = [0] * (2 * (left.rank - 1 - a["dim"] % left.rank))
    sizes = [static_size(t.node, a["dim"]) for t in (left, right)]
    wide = left.op(aten.constant_pad_nd.default, [*before, 0, sizes[1]])
    return wide + right.op(aten.constant_pad_nd.default, [*before, sizes[0], 0])


def _joins_two(node: fx.Node) -> bool:
    a = raw_arguments(node)
    return is_float(node) and len(a["tensors"]) == 2 and all(static_size(t, a["dim"]) for t in a["tensors"])


def _selected_rows(edit: Edit, node: fx.Node) -> Term:
    """embedding(W, ids) by index_select."""
    a = arguments(edit, node)
    rows = a["weight"].op(aten.index_select.default, 0, a["indices"].reshaped([-1]))
    return rows.reshaped([*a["indices"].shape(), static_size(node, -1)])


def _indexed_rows(edit: Edit, node: fx.Node) -> Term:
    """embedding(W, ids) = W[ids]."""
    a = arguments(edit, node)
    return call(edit, aten.index.Tensor, a["weight"], [a["indices"]])


def _swapped_where(edit: Edit, node: fx.Node) -> Term:
    """where(c, a, b) = where(not c, b, a)."""
    condition, yes, no = node.args
    return _first(edit, node).op(aten.logical_not.default).op(node.target, *(no, yes))


def _opposite(edit: Edit, node: fx.Node) -> Term:
    """a and b = not (not a or not b)."""
    left, right = (Term(edit, n).op(aten.logical_not.default) for n in node.args if isinstance(n, fx.Node))
    return left.op(aten.logical_or.default, right).op(aten.logical_not.default)


def _is_boolean(node: fx.Node) -> bool:
    values = [recorded_tensor(n) for n in (node, *node.args[:2])]
    return all(v is not None and v.dtype is torch.bool for v in values)


def _has_rank(node: fx.Node, least: int, most: int = 8) -> bool:
    value = recorded_tensor(node.args[0]) if node.args else None
    return value is not None and value.is_floating_point() and least <= value.dim() <= most


def _is_pointwise(node: fx.Node) -> bool:
    return _has_rank(node, 2) and all(not isinstance(a, fx.Node) for a in node.args[1:])


def _keeps_the_batch(node: fx.Node) -> bool:
    return _has_rank(node, 2) and is_stored(*(a for a in node.args[1:] if isinstance(a, fx.Node)))


def _is_rowwise(node: fx.Node) -> bool:
    return _has_rank(node, 3) and _keeps_the_batch(node)


def _is_image(node: fx.Node) -> bool:
    return _has_rank(node, 4, 4) and _is_pointwise(node)


def _is_trip(node: fx.Node) -> bool:
    return _has_rank(node, 2) and not is_stored(node.args[0])


_SAMPLEWISE = (*_POINTWISE, *_ROWWISE, _CONV2D)

KINDS: Final[tuple[Kind, ...]] = (
    borrowed("moved-transposes", MoveTransposes(), keeps_16_bits=True),
    built("transposed-operator", _POINTWISE, _transposed_operator, _is_pointwise, keeps_16_bits=True),
    built("flattened-operator", _POINTWISE, _flattened_operator, _is_pointwise, keeps_16_bits=True),
    built("channels-last-operator", _POINTWISE, _channels_last, _is_image, keeps_16_bits=True),
    built("turned-batch", _SAMPLEWISE, _turned_batch, _keeps_the_batch, keeps_16_bits=True),
    built("first-sample-apart", _SAMPLEWISE, _first_sample_apart, _keeps_the_batch, keeps_16_bits=True),
    built("rows-together", _ROWWISE, _rows_together, _is_rowwise, keeps_16_bits=True),
    built("selected-first", (aten.select.int,), _selected_first, _selects_a_row, keeps_16_bits=True),
    built(
        "transpose-round-trip",
        _TRIPS,
        _round_trip(Term.transposed, aten.transpose.int, -2, -1),
        _is_trip,
        exactness=_BITWISE,
        keeps_16_bits=True,
    ),
    built(
        "unsqueeze-round-trip",
        _TRIPS,
        _round_trip(lambda x: x.op(aten.unsqueeze.default, 0), aten.squeeze.dim, 0),
        _is_trip,
        exactness=_BITWISE,
        keeps_16_bits=True,
    ),
    built(
        "double-negation",
        _TRIPS,
        _round_trip(Term.__neg__, aten.neg.default),
        _is_trip,
        exactness=_BITWISE,
        keeps_16_bits=True,
    ),
    built("whole-slice", _TRIPS, _whole_slice, _is_trip, exactness=_BITWISE, keeps_16_bits=True),
    built("times-one", _TRIPS, _times_one, _is_trip, exactness=_BITWISE, keeps_16_bits=True),
    built("rolled-concat", (_CAT,), _rolled_concat, _joins_two, exactness=_BITWISE, keeps_16_bits=True),
    built("padded-concat", (_CAT,), _padded_concat, _joins_two, keeps_16_bits=True),
    built("embedding-by-selection", (_EMBEDDING,), _selected_rows, exactness=_BITWISE, keeps_16_bits=True),
    built("embedding-by-index", (_EMBEDDING,), _indexed_rows, exactness=_BITWISE, keeps_16_bits=True),
    built("swapped-where", (aten.where.self,), _swapped_where, exactness=_BITWISE, keeps_16_bits=True),
    built("opposite-and", (aten.__and__.Tensor,), _opposite, _is_boolean, exactness=_BITWISE, keeps_16_bits=True),
)
