"""Move the bias of attention's value projection into the output projection.

    softmax(S) (V + 1 b_v^T)  =  softmax(S) V + 1 b_v^T          each row of a softmax adds up to one
    linear(attention(.., linear(x, W_v, b_v)), W_o, b_o)  =  linear(attention(.., linear(x, W_v)), W_o, b_o + W_o b_v)

The bias follows the values through heads, repetition for grouped queries and transposes to the columns of W_o.

A bias of a packed projection goes where those of its other features are zero; else adding them costs the same.

Numerical effect: EXACT. b_o' is computed in float64 and rounded once. A row whose scores hold a NaN or plus infinity is
NaN before and after. So is a row of a written softmax that hides everything; but ``scaled_dot_product_attention`` gives
zeros for such a row, and no bias: there, a mask must show something in every row.

Refuses when:
    mask-may-hide-a-row     a boolean mask, or an additive one that may be minus infinity, that is computed at run time;
                            or a stored one that hides a row
    no-bias                 the value projection has no bias
    no-gain                 the bias of a packed projection has other features that are not zero
    not-linear-producer     the values do not come from a linear layer
    not-linear-reader       what reads the output of attention is no linear layer
    graph-output            the output of attention is an output of the model
    multiple-readers        the values are read elsewhere too
    axis-mismatch           the rows of the softmax are not what is summed over, or features do not end up on the axis
                            that the output projection contracts
    train-mode              attention with dropout
    not-constant            a weight or a bias is computed at run time, or state
    not-finite              the new bias would overflow its dtype
    unsupported-spelling    the bias has an axis beside that of the features, and differs from value to value

A site is a call of scaled_dot_product_attention, or a softmax whose weights are multiplied with values; other softmaxes
are no attention.

Attributes of the matched operators:
    scaled_dot_product_attention: value, attn_mask, enable_gqa used; dropout_p checked to be 0; is_causal irrelevant:
    every row sees the first key; query, key, scale irrelevant: they decide the weights, whose sum is one.
    softmax, _softmax: dim checked; dtype, half_to_float irrelevant. matmul, bmm: both operands used.
    linear: weight, bias used.
    Between them: the moves of ``flowopt.analysis.feature_layout``.

Source: Nanda and Bloom, "TransformerLens", fold_value_biases.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.attention_mask import hides_no_row
from flowopt.analysis.feature_layout import (
    MOVES,
    Layout,
    PlacedReader,
    initial_layout,
    layout_along,
    placed_readers,
    runs_of,
)
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.passes.fold import _layers as layers
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default
_SOFTMAXES = (_aten.softmax.int, _aten._softmax.default)
_PRODUCTS = (_aten.matmul.default, _aten.bmm.default)
_SIZE_READERS = (_aten.sym_size.int,)


@dataclass(frozen=True, slots=True)
class Target:
    """An output projection; ``features`` of the value projection are what its columns read."""

    layer: fx.Node
    features: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Move the bias of ``layer`` to ``targets``.

    Attributes:
        layer: the value projection, perhaps packed with others.
        targets: output projections.
        between: operators that are repeated, in graph order.
        kept: values of other features of the layer.
        sizes: readers of sizes.
    """

    layer: fx.Node
    targets: tuple[Target, ...]
    between: tuple[fx.Node, ...]
    kept: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


class FoldValueBias(RewritePass[Plan]):
    """Move the bias of attention's value projection into the output projection."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_ATTENTION, *_SOFTMAXES)

    def sites(self, program: Program) -> list[fx.Node]:
        """Attention, and softmaxes whose weights are multiplied with values."""
        return [n for n in super().sites(program) if n.target is _ATTENTION or _weighing(n) is not None]

    def check(self, site: Site) -> Plan:
        output, value = _attention(site)
        layer = _projection(site, value)
        axis = initial_layout(layer, -1)
        assert axis is not None  # the number of rows of a weight is known
        found = list(placed_readers(layer, axis))
        own = [r for r in found if r.node is output and r.source is value]
        site.require(
            len(own) == 1, "axis-mismatch", f"{value.name} does not hold whole features of {layer.name}", value
        )
        others = [r for r in found if r not in own]
        sizes = [r for r in others if r.node.target in _SIZE_READERS]
        features = own[0].layout.all_features()
        for other in (r for r in others if r not in sizes):
            overlaps = bool(other.layout.all_features() & features)
            message = f"{other.source.name} is read by {other.node.name} ({other.node.target}) too"
            site.require(not overlaps, "multiple-readers", message, other.node)
        _require_zero_elsewhere(site, layer, features)
        weighed = _weighed(output, own[0].layout)
        if weighed is None:
            site.refuse("axis-mismatch", f"the sum over weights is not along an axis without features of {layer.name}")
        behind = list(placed_readers(output, weighed))
        sizes += [r for r in behind if r.node.target in _SIZE_READERS]
        targets = tuple(_target(site, r) for r in behind if r not in sizes)
        site.require(bool(targets), "not-linear-reader", f"nothing reads {output.name} but its size")
        _require_finite(site, layer, targets)
        between = {output, *(n for r in (*found, *behind) for n in r.path)}
        kept = dict.fromkeys(r.source for r in others if r not in sizes)
        return Plan(layer, targets, tuple(sorted(between)), tuple(kept), tuple(r.node for r in sizes))

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        weight, bias = layers.weight_and_bias(plan.layer)
        assert bias is not None
        with edit.before(plan.layer):
            moved = {plan.layer: edit.call(plan.layer.target, plan.layer.args[0], weight)}
        for node in plan.between:
            with edit.before(node):
                moved[node] = edit.repeat(node, moved)
        for target in plan.targets:
            layer = target.layer
            old_weight, old_bias = layers.weight_and_bias(layer)
            name = layers.parameter_name(old_weight, layer.name).removesuffix(".weight") + ".bias"
            name = name if old_bias is None else layers.parameter_name(old_bias, name)
            with edit.before(layer):
                new_bias = edit.parameter(
                    name, _new_bias(plan.layer, target, edit.constant), like=old_bias or old_weight
                )
                source = layer.args[0]
                assert isinstance(source, fx.Node)
                edit.replace(layer, edit.call(layer.target, moved[source], old_weight, new_bias))
        for node in plan.kept:
            edit.replace(node, moved[node])
        for node in plan.sizes:
            with edit.before(node):
                edit.replace(node, edit.repeat(node, moved))
        return f"bias of {plan.layer.name} -> {', '.join(t.layer.name for t in plan.targets)}"


def _weighing(softmax: fx.Node) -> PlacedReader | None:
    """The product of a softmax's weights, from the left, with values."""
    layout = layout_along(softmax, -1)
    found = [] if layout is None else list(placed_readers(softmax, layout))
    first = found[0] if len(found) == 1 else None
    is_product = first is not None and first.node.target in _PRODUCTS and first.node.args[0] is first.source
    return first if is_product else None


def _attention(site: Site) -> tuple[fx.Node, fx.Node]:
    """The node that gives the weighed values, and the values; refuses where weights may not add up to one."""
    node = site.node
    if node.target is not _ATTENTION:
        found = _weighing(node)
        rank = len(sizes_as_text(node))
        along_last = isinstance(node.args[1], int) and node.args[1] % rank == rank - 1
        if found is None or not along_last or not _is_whole(found, node):
            site.refuse("axis-mismatch", "the product does not sum over whole rows of the softmax")
        values = found.node.args[1]
        assert isinstance(values, fx.Node)
        return found.node, values
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p"), node.args, strict=False)) | dict(node.kwargs)
    dropout, mask, value = given.get("dropout_p", 0.0), given.get("attn_mask"), given["value"]
    site.require(not dropout, "train-mode", f"dropout_p is {dropout}")
    if isinstance(mask, fx.Node):
        kind, query = recorded_tensor(mask), recorded_tensor(value)
        assert kind is not None and query is not None  # a graph without is not legal
        # Kernels may bring an additive mask to the dtype of the scores, in which it may be infinite.
        shown = kind.dtype in (torch.bool, query.dtype) and hides_no_row(mask, site.program.constant)
        site.require(shown, "mask-may-hide-a-row", f"{mask.name} ({mask.target}) may hide all of a row", mask)
    is_read_once = bool(value not in (given["query"], given["key"]))
    site.require(is_read_once, "multiple-readers", f"{value} is the values and the keys, or the queries")
    assert isinstance(value, fx.Node)
    return node, value


def _is_whole(weights: PlacedReader, softmax: fx.Node) -> bool:
    """True when the rows that a product sums over are those of the softmax: without a last one, they add up to less."""
    last = len(weights.layout.axes) - 1
    size = softmax.meta["val"].shape[-1]
    return weights.layout.axes[last] == runs_of(size, 1) and weights.layout.featured_axes() in ((last,), ())


def _projection(site: Site, value: fx.Node) -> fx.Node:
    """The linear layer that gives the values, with its stored bias."""
    node = value
    # A getitem is of a split, or else what is behind it is no move and no linear layer.
    while node.target in MOVES or node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    message = f"the values come from {node.name} ({node.target})"
    site.require(node.target is layers.LINEAR, "not-linear-producer", message, node)
    weight, bias = layers.weight_and_bias(node)
    if bias is None:
        site.refuse("no-bias", f"{node.name} has no bias", node)
    # A bias of more axes would differ from value to value.
    fits = len(sizes_as_text(bias)) == 1 and sizes_as_text(bias) == sizes_as_text(node)[-1:]
    message = f"the bias of {node.name} is of shape {sizes_as_text(bias)}"
    site.require(fits, "unsupported-spelling", message, node)
    site.constant(weight, f"the weight of {node.name}")
    site.constant(bias, f"the bias of {node.name}")
    return node


def _require_zero_elsewhere(site: Site, layer: fx.Node, features: frozenset[int]) -> None:
    bias = layers.weight_and_bias(layer)[1]
    assert bias is not None
    value = site.program.constant(bias)
    others = [i for i in range(value.numel()) if i not in features]
    is_zero = not bool(value[others].any())
    message = f"{len(others)} other features of {layer.name} have a bias too, which stays"
    site.require(is_zero, "no-gain", message, layer)


def _weighed(output: fx.Node, layout: Layout) -> Layout | None:
    """Where the features of the values are in the output of attention; None where it sums over some of them."""
    value, result = output.args[2 if output.target is _ATTENTION else 1], recorded_tensor(output)
    before = recorded_tensor(value)
    if (
        before is None
        or result is None
        or before.dim() != result.dim()
        or result.dim() < 2
        or layout.holds(result.dim() - 2)
    ):
        return None
    axes = list(layout.axes)
    axes[-2] = runs_of(result.shape[-2], 0)
    for axis in range(result.dim() - 2):
        size, wanted = before.shape[axis], result.shape[axis]
        if str(size) == str(wanted):
            continue
        times = _repetitions(output, axis - result.dim(), static_size(value, axis), static_size(output, axis))
        if times is None:
            axes[axis] = runs_of(wanted, 0)
            if str(size) != "1":
                return None
        else:
            axes[axis] += runs_of(times, 0)
    return Layout(tuple(axes), layout.start)


def _repetitions(output: fx.Node, axis: int, heads: int | None, queries: int | None) -> int | None:
    """How often grouped queries repeat each head of the values, one after the other."""
    is_grouped = output.target is _ATTENTION and output.kwargs.get("enable_gqa") is True and axis == -3
    return queries // heads if is_grouped and heads and queries and queries % heads == 0 else None


def _target(site: Site, reader: PlacedReader) -> Target:
    node = reader.node
    site.require(node.op != "output", "graph-output", "the output of attention is an output of the model", node)
    is_linear = node.target is layers.LINEAR and node.args[0] is reader.source and reader.source not in node.args[1:]
    message = f"{node.name} ({node.target}) reads {reader.source.name} and is no linear layer"
    site.require(is_linear, "not-linear-reader", message, node)
    last = len(reader.layout.axes) - 1
    message = f"{node.name} contracts axis {last}, and features are on axes {reader.layout.featured_axes()}"
    site.require(reader.layout.featured_axes() in ((last,), ()), "axis-mismatch", message, node)
    return Target(node, reader.layout.features(last))


def _require_finite(site: Site, layer: fx.Node, targets: tuple[Target, ...]) -> None:
    for target in targets:
        weight, bias = layers.weight_and_bias(target.layer)
        site.constant(weight, f"the weight of {target.layer.name}")
        if bias is not None:
            site.constant(bias, f"the bias of {target.layer.name}")
        stored = recorded_tensor(weight)
        assert stored is not None
        limit = torch.finfo(stored.dtype).max
        fits = bool((_new_bias(layer, target, site.program.constant).abs() <= limit).all())
        site.require(fits, "not-finite", f"the new bias of {target.layer.name} would exceed {limit:.3g}", target.layer)


def _new_bias(layer: fx.Node, target: Target, constant: Callable[[fx.Node], Tensor]) -> Tensor:
    moved = layers.weight_and_bias(layer)[1]
    weight, bias = layers.weight_and_bias(target.layer)
    assert moved is not None
    added = constant(weight) @ constant(moved)[list(target.features)]
    return added if bias is None else constant(bias) + added
