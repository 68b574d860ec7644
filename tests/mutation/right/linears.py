"""Linear layers split, merged, scaled and spelled differently."""

from typing import Any, Final

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.rewrite import Edit
from tests.mutation.right.kind import Kind, built
from tests.mutation.right.term import Term, arguments, aten, call, is_call, is_float, is_stored, joined, raw_arguments

_LINEAR = aten.linear.default
# No power of two, so that scaling by it rounds. In 16 bits it would overflow what is finite now.
_SCALE = 3.0


def _linear(x: Term, weight: Term, bias: Term | None) -> Term:
    return x.op(_LINEAR, weight, bias) if bias is not None else x.op(_LINEAR, weight)


def _split_in_features(edit: Edit, node: fx.Node) -> Term:
    """W x + b = W[:, :h] x[:h] + b + W[:, h:] x[h:]."""
    a = arguments(edit, node)
    w = a["weight"].value()
    half = w.shape[1] // 2
    first = _linear(a["input"].part(-1, 0, half), a["weight"].stored(w[:, :half]), a["bias"])
    return first + _linear(a["input"].part(-1, half), a["weight"].stored(w[:, half:]), None)


def _split_out_features(edit: Edit, node: fx.Node) -> Term:
    """W x + b = (W[:h] x + b[:h], W[h:] x + b[h:])."""
    a = arguments(edit, node)
    half = a["weight"].value().shape[0] // 2
    parts = []
    for rows in (slice(None, half), slice(half, None)):
        bias = a["bias"].stored(a["bias"].value()[rows]) if a["bias"] is not None else None
        parts.append(_linear(a["input"], a["weight"].stored(a["weight"].value()[rows]), bias))
    return joined(parts, -1)


def _merged_siblings(edit: Edit, node: fx.Node) -> Term:
    """Linear layers of one input become one, and everybody gets its columns."""
    family = _siblings(node)
    members = [arguments(edit, n) for n in family]
    weight = members[0]["weight"].stored(torch.cat([m["weight"].value() for m in members]))
    bias = None
    if members[0]["bias"] is not None:
        bias = members[0]["bias"].stored(torch.cat([m["bias"].value() for m in members]))
    merged, ends = _linear(members[0]["input"], weight, bias), [0]
    for member in members:
        ends.append(ends[-1] + member["weight"].value().shape[0])
    columns = [merged.part(-1, start, end) for start, end in zip(ends, ends[1:], strict=False)]
    for other, part in zip(family[1:], columns[1:], strict=True):
        edit.replace(other, part.node)
    return columns[0]


def _siblings(node: fx.Node) -> list[fx.Node]:
    """Linear layers with the same input and stored weights, with a bias where this one has one; in order."""
    source, has_bias = node.args[0], is_stored(*node.args[2:3]) and len(node.args) == 3
    users = sorted(source.users) if isinstance(source, fx.Node) else []
    return [
        n
        for n in users
        if is_call(n, _LINEAR) and n.args[0] is source and is_stored(*n.args[1:]) and (len(n.args) == 3) == has_bias
    ]


def _is_eldest(node: fx.Node) -> bool:
    family = _siblings(node)
    return len(family) > 1 and family[0] is node


def _bias_apart(edit: Edit, node: fx.Node) -> Term:
    """linear(x, W, b) = linear(x, W) + b."""
    a = arguments(edit, node)
    return _linear(a["input"], a["weight"], None) + a["bias"]


def _bias_in_residual(edit: Edit, node: fx.Node) -> Term:
    """linear(x, W, b) + r = linear(x, W) + (r + b)."""
    both = arguments(edit, node)
    layer, rest = (both["self"], both["other"]) if _has_bias(node.args[0]) else (both["other"], both["self"])
    a = arguments(edit, layer.node)
    return _linear(a["input"], a["weight"], None) + (rest + a["bias"])


def _adds_a_layer(node: fx.Node) -> bool:
    return not node.kwargs and all(map(is_float, node.args[:2])) and any(map(_has_bias, node.args[:2]))


def _has_bias(node: Any) -> bool:
    return is_call(node, _LINEAR) and len(node.args) == 3 and is_stored(node.args[2])


def _transposed(edit: Edit, node: fx.Node) -> Term:
    """x W^T = (W x^T)^T."""
    a = arguments(edit, node)
    product = (a["weight"] @ a["input"].transposed()).transposed()
    return product + a["bias"] if a["bias"] is not None else product


def _einsum(edit: Edit, node: fx.Node) -> Term:
    """x W^T as an einsum."""
    a = arguments(edit, node)
    product = call(edit, aten.einsum.default, "...i,oi->...o", [a["input"], a["weight"]])
    return product + a["bias"] if a["bias"] is not None else product


def _by_rows(edit: Edit, node: fx.Node) -> Term:
    """All rows as one matrix, times the stored transpose of the weight."""
    a = arguments(edit, node)
    w = a["weight"].value()
    matrix = a["weight"].stored(w.t())
    rows = a["input"].reshaped([-1, w.shape[1]])
    product = rows.op(aten.mm.default, matrix)
    if a["bias"] is not None:
        product = a["bias"].op(aten.addmm.default, rows, matrix)
    return product.reshaped([*a["input"].shape()[:-1], w.shape[0]])


def _as_convolution(edit: Edit, node: fx.Node) -> Term:
    """A linear layer over (batch, sequence, features) is a convolution of length one."""
    a = arguments(edit, node)
    kernel = a["weight"].stored(a["weight"].value().unsqueeze(-1))
    columns = a["input"].transposed()
    result = columns.op(aten.conv1d.default, kernel, a["bias"])
    return result.transposed()


def _summed_products(edit: Edit, node: fx.Node) -> Term:
    """x W^T as a broadcast product and a sum."""
    a = arguments(edit, node)
    product = (a["input"].op(aten.unsqueeze.default, -2) * a["weight"]).op(aten.sum.dim_IntList, [-1])
    return product + a["bias"] if a["bias"] is not None else product


def _scaled(edit: Edit, node: fx.Node) -> Term:
    """linear(x, W, b) = linear(x, c W, c b) / c: weights are scaled in float64 and rounded once."""
    a = arguments(edit, node)
    bias = a["bias"].stored(_SCALE * a["bias"].value()) if a["bias"] is not None else None
    return _linear(a["input"], a["weight"].stored(_SCALE * a["weight"].value()), bias) / _SCALE


def _columns_scaled(edit: Edit, node: fx.Node) -> Term:
    """W x = (W / s) (s x) with a scale for every input feature, as when outliers are moved into the weights."""
    a = arguments(edit, node)
    w = a["weight"].value()
    scale = torch.linspace(0.3, 2.9, w.shape[1], dtype=w.dtype)
    x = a["input"] * a["weight"].stored(scale)
    return _linear(x, a["weight"].stored(w / scale), a["bias"])


def _bias_as_column(edit: Edit, node: fx.Node) -> Term:
    """W x + b = (W, b) (x, 1)."""
    a = arguments(edit, node)
    wide = torch.cat([a["weight"].value(), a["bias"].value().unsqueeze(-1)], 1)
    x = a["input"].op(aten.constant_pad_nd.default, [0, 1], 1.0)
    return _linear(x, a["weight"].stored(wide), None)


def _folded_scale(edit: Edit, node: fx.Node) -> Term:
    """c linear(x, W, b) = linear(x, c W, c b)."""
    layer, scale = (Term(edit, n) if isinstance(n, fx.Node) else n for n in node.args[:2])
    assert isinstance(layer, Term)
    a = arguments(edit, layer.node)
    factor: Any = scale.value() if isinstance(scale, Term) else scale
    bias = a["bias"].stored(factor * a["bias"].value()) if a["bias"] is not None else None
    column = factor.unsqueeze(-1) if isinstance(factor, torch.Tensor) else factor
    return _linear(a["input"], a["weight"].stored(column * a["weight"].value()), bias)


def _scales_a_layer(node: fx.Node) -> bool:
    layer, scale = node.args[:2]
    if not is_call(layer, _LINEAR) or not is_stored(*layer.args[1:]):
        return False
    value = recorded_tensor(scale)
    return isinstance(scale, float) or (is_stored(scale) and value is not None and value.dim() == 1)


def _composed(edit: Edit, node: fx.Node) -> Term:
    """V (W x + b) + c = (V W) x + (V b + c)."""
    outer = arguments(edit, node)
    inner = arguments(edit, outer["input"].node)
    v = outer["weight"].value()
    bias = outer["bias"].stored(v @ inner["bias"].value() + outer["bias"].value())
    return _linear(inner["input"], inner["weight"].stored(v @ inner["weight"].value()), bias)


def _follows_a_layer(node: fx.Node) -> bool:
    inner = node.args[0]
    return _has_bias(node) and _has_bias(inner) and is_stored(node.args[1], *inner.args[1:])  # type: ignore[union-attr]  # a call


def _has_stored_bias(node: fx.Node) -> bool:
    return is_stored(node.args[1]) and _has_bias(node)


def _is_stored_layer(node: fx.Node) -> bool:
    return is_stored(*node.args[1:])


def _is_stored_matrix(node: fx.Node) -> bool:
    value = recorded_tensor(node.args[0])
    return _is_stored_layer(node) and value is not None and value.dim() >= 2


def _has_three_axes(node: fx.Node) -> bool:
    value = recorded_tensor(node.args[0])
    return _is_stored_layer(node) and value is not None and value.dim() == 3


def _is_small(node: fx.Node) -> bool:
    weight = recorded_tensor(raw_arguments(node)["weight"])
    return _is_stored_layer(node) and weight is not None and weight.numel() <= 10_000


KINDS: Final[tuple[Kind, ...]] = (
    built("split-in-features", (_LINEAR,), _split_in_features, _is_stored_layer, keeps_16_bits=True),
    built("split-out-features", (_LINEAR,), _split_out_features, _is_stored_layer, keeps_16_bits=True),
    built("merged-siblings", (_LINEAR,), _merged_siblings, _is_eldest, keeps_16_bits=True),
    built("bias-apart", (_LINEAR,), _bias_apart, _has_stored_bias, keeps_16_bits=True),
    built("bias-in-residual", (aten.add.Tensor,), _bias_in_residual, _adds_a_layer, keeps_16_bits=True),
    built("transposed-linear", (_LINEAR,), _transposed, _is_stored_matrix, keeps_16_bits=True),
    built("linear-as-einsum", (_LINEAR,), _einsum, _is_stored_layer, keeps_16_bits=True),
    built("linear-by-rows", (_LINEAR,), _by_rows, _is_stored_matrix, keeps_16_bits=True),
    built("linear-as-convolution", (_LINEAR,), _as_convolution, _has_three_axes, keeps_16_bits=True),
    built("linear-as-summed-products", (_LINEAR,), _summed_products, _is_small),
    built("scaled-linear", (_LINEAR,), _scaled, _is_stored_layer),
    built("scaled-columns", (_LINEAR,), _columns_scaled, _is_stored_layer),
    built("bias-as-column", (_LINEAR,), _bias_as_column, _has_stored_bias, keeps_16_bits=True),
    built("folded-scale", (aten.mul.Tensor,), _folded_scale, _scales_a_layer, keeps_16_bits=True),
    built("composed-linears", (_LINEAR,), _composed, _follows_a_layer, keeps_16_bits=True),
)
