"""Attention and softmax in other steps, every softmax with its largest score taken off first."""

import math
from typing import Any, Final

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.rewrite import Edit
from tests.mutation.right.kind import Kind, built
from tests.mutation.right.term import Term, arguments, aten, call, joined, raw_arguments

_ATTENTION = aten.scaled_dot_product_attention.default
_SOFTMAX, _LOG_SOFTMAX, _LOGSUMEXP = aten.softmax.int, aten.log_softmax.int, aten.logsumexp.default
_LOG2_E = math.log2(math.e)


def _scale(a: dict[str, Any]) -> float:
    width = static_size(a["query"].node, -1)
    assert width is not None
    return float(a["scale"]) if a["scale"] is not None else 1.0 / math.sqrt(width)


def _attention(a: dict[str, Any], **changed: Any) -> Term:
    """The attention of ``a`` with some arguments replaced."""
    b = a | changed
    q: Term = b["query"]
    mask = b["attn_mask"]
    return q.op(_ATTENTION, b["key"], b["value"], mask, 0.0, b["is_causal"], scale=b["scale"])


def _added(mask: Term) -> Term:
    """A mask as what is added to the scores: 0 where it is seen, -inf where it is hidden."""
    value = recorded_tensor(mask.node)
    if value is None or value.dtype is not torch.bool:
        return mask
    numbers = [call(mask.edit, aten.scalar_tensor.default, n, dtype=torch.float32) for n in (0.0, -math.inf)]
    return mask.op(aten.where.self, *numbers)


def _scores(a: dict[str, Any]) -> Term:
    scores: Term = (a["query"] @ a["key"].transposed()) * _scale(a)
    return scores + _added(a["attn_mask"]) if a["attn_mask"] is not None else scores


def _decomposed(edit: Edit, node: fx.Node) -> Term:
    """softmax(q k^T s + mask) v; a row that hides everything gives zeros, as the operator does."""
    a = arguments(edit, node)
    softmax = aten._safe_softmax.default if a["attn_mask"] is not None else _SOFTMAX
    weights = _scores(a).op(softmax, -1)
    return weights @ a["value"]


def _weights_apart(edit: Edit, node: fx.Node) -> Term:
    """(exp(s - max) v) / sum exp(s - max): divided after the product, as streaming kernels do."""
    a = arguments(edit, node)
    scores = _scores(a)
    raised = (scores - scores.op(aten.amax.default, [-1], True)).op(aten.exp.default)
    return (raised @ a["value"]) / raised.total()


def _scale_in_query(edit: Edit, node: fx.Node) -> Term:
    """The scale multiplies the query."""
    a = arguments(edit, node)
    return _attention(a, query=a["query"] * _scale(a), scale=1.0)


def _scale_in_both(edit: Edit, node: fx.Node) -> Term:
    """Half of the scale (its root) multiplies the query, the other half the key."""
    a = arguments(edit, node)
    root = math.sqrt(_scale(a))
    return _attention(a, query=a["query"] * root, key=a["key"] * root, scale=1.0)


def _additive_mask(edit: Edit, node: fx.Node) -> Term:
    """A mask of booleans as one of numbers."""
    a = arguments(edit, node)
    return _attention(a, attn_mask=_added(a["attn_mask"]))


def _heads_apart(edit: Edit, node: fx.Node) -> Term:
    """Half of the heads in one call, half in another."""
    a = arguments(edit, node)
    heads: Any = static_size(node, 1)
    parts = []
    for ends in ((0, heads // 2), (heads // 2, heads)):
        changed = {n: a[n].part(1, *ends) for n in ("query", "key", "value")}
        if a["attn_mask"] is not None and static_size(a["attn_mask"].node, 1) == heads:
            changed["attn_mask"] = a["attn_mask"].part(1, *ends)
        parts.append(_attention(a, **changed))
    return joined(parts, 1)


def _values_apart(edit: Edit, node: fx.Node) -> Term:
    """Half of the features of the values in one call, half in another."""
    a = arguments(edit, node)
    width: Any = static_size(node, -1)
    halves = [a["value"].part(-1, *ends) for ends in ((0, width // 2), (width // 2, width))]
    return joined([_attention(a, value=half, scale=_scale(a)) for half in halves], -1)


def _keys_turned(edit: Edit, node: fx.Node) -> Term:
    """Keys and values in the opposite order."""
    a = arguments(edit, node)
    turned = {n: a[n].op(aten.flip.default, [-2]) for n in ("key", "value")}
    if a["attn_mask"] is not None:
        turned["attn_mask"] = a["attn_mask"].op(aten.flip.default, [-1])
    return _attention(a, **turned)


def _is_plain(node: fx.Node) -> bool:
    a = raw_arguments(node)
    value = recorded_tensor(node)
    four = value is not None and value.dim() == 4
    return four and not a["dropout_p"] and not a["is_causal"] and not a["enable_gqa"]


def _is_unmasked(node: fx.Node) -> bool:
    return _is_plain(node) and raw_arguments(node)["attn_mask"] is None


def _has_boolean_mask(node: fx.Node) -> bool:
    mask = recorded_tensor(raw_arguments(node)["attn_mask"])
    return _is_plain(node) and mask is not None and mask.dtype is torch.bool


def _has_heads(node: fx.Node) -> bool:
    return _is_plain(node) and (static_size(node, 1) or 0) >= 2


def _shifted(x: Term, axis: int) -> Term:
    return x - x.op(aten.amax.default, [axis], True)


def _softmax_by_exp(edit: Edit, node: fx.Node) -> Term:
    """exp(x - max) / sum exp(x - max)."""
    a = arguments(edit, node)
    raised = _shifted(a["self"], a["dim"]).op(aten.exp.default)
    return raised / raised.total(a["dim"])


def _softmax_by_powers_of_two(edit: Edit, node: fx.Node) -> Term:
    """2^((x - max) log2 e), divided by its sum."""
    a = arguments(edit, node)
    raised = (_shifted(a["self"], a["dim"]) * _LOG2_E).op(aten.exp2.default)
    return raised / raised.total(a["dim"])


def _softmax_by_logarithm(edit: Edit, node: fx.Node) -> Term:
    """exp(log_softmax(x))."""
    a = arguments(edit, node)
    return Term(edit, a["self"].op(_LOG_SOFTMAX, a["dim"]).node).op(aten.exp.default)


def _log_softmax_by_exp(edit: Edit, node: fx.Node) -> Term:
    """x - max - log(sum(exp(x - max)))."""
    a = arguments(edit, node)
    shifted = _shifted(a["self"], a["dim"])
    return shifted - shifted.op(aten.exp.default).total(a["dim"]).op(aten.log.default)


def _logsumexp_by_max(edit: Edit, node: fx.Node) -> Term:
    """max + log(sum(exp(x - max))); a row whose largest element is infinite is not shifted."""
    a = arguments(edit, node)
    largest = a["self"].op(aten.amax.default, a["dim"], True)
    infinite = largest.op(aten.isinf.default)
    largest = largest.op(aten.masked_fill.Scalar, infinite, 0.0)
    total = (a["self"] - largest).op(aten.exp.default).op(aten.sum.dim_IntList, a["dim"], True)
    result = total.op(aten.log.default) + largest
    return result if a["keepdim"] else result.op(aten.squeeze.dims, a["dim"])


def _keeps_dtype(node: fx.Node) -> bool:
    return raw_arguments(node)["dtype"] is None


KINDS: Final[tuple[Kind, ...]] = (
    built("attention-by-steps", (_ATTENTION,), _decomposed, _is_plain),
    built("attention-divided-last", (_ATTENTION,), _weights_apart, _is_unmasked),
    built("scale-in-query", (_ATTENTION,), _scale_in_query, _is_plain, keeps_16_bits=True),
    built("scale-in-query-and-key", (_ATTENTION,), _scale_in_both, _is_plain, keeps_16_bits=True),
    built("additive-mask", (_ATTENTION,), _additive_mask, _has_boolean_mask, keeps_16_bits=True),
    built("heads-apart", (_ATTENTION,), _heads_apart, _has_heads, keeps_16_bits=True),
    built("values-apart", (_ATTENTION,), _values_apart, _is_plain, keeps_16_bits=True),
    built("keys-turned", (_ATTENTION,), _keys_turned, _is_plain, keeps_16_bits=True),
    built("softmax-by-exp", (_SOFTMAX,), _softmax_by_exp, _keeps_dtype),
    built("softmax-by-powers-of-two", (_SOFTMAX,), _softmax_by_powers_of_two, _keeps_dtype),
    built("softmax-by-logarithm", (_SOFTMAX,), _softmax_by_logarithm, _keeps_dtype),
    built("log-softmax-by-exp", (_LOG_SOFTMAX,), _log_softmax_by_exp, _keeps_dtype),
    built("logsumexp-by-max", (_LOGSUMEXP,), _logsumexp_by_max),
)
