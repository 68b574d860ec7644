"""Remove the bias of attention's key projection, which no softmax sees.

    softmax(q (k + 1 b^T)^T + M)  =  softmax(q k^T + (q b) 1^T + M)  =  softmax(q k^T + M)

What a bias adds is the same for all keys, and a softmax does not change when a number is added to a whole row. This
holds for any mask M: what it hides stays hidden, and a row of which nothing is left gives zeros or NaN as before.

Only biases of their own are removed: setting the keys' part of a packed bias to zero saves nothing.

Numerical effect: EXACT. The remaining scores are rounded at their own size, no longer at that of q b. Where all of a
row is hidden by the lowest finite number of its dtype, scores decide by rounding alone whether that row overflows.

Refuses when:
    multiple-readers        the keys or the scores are read elsewhere too
    graph-output            the keys (a cache) or the scores are an output of the model
    no-bias                 the key projection has no bias
    no-gain                 the bias of a packed projection has other features that are not zero
    not-linear-producer     the keys do not come from a linear layer through moves alone, as behind rotary positions,
                            norms of keys, and caches of earlier keys
    not-a-row-shift         between product and softmax stands more than scales, added masks, and hiding places by the
                            lowest numbers: a cap, a limit, a product with positions
    axis-mismatch           features stand along the axis of keys, or the softmax is over another axis
    train-mode              attention with dropout
    not-constant            the bias is computed at run time, or state
    not-finite              the bias holds a NaN or an infinity
    unsupported-spelling    the bias has no entry for each feature of the layer, and no more

A site is a call of scaled_dot_product_attention, or a softmax that a product of two computed values reaches through
moves and elementwise operators; other softmaxes are no attention.

Attributes of the matched operators:
    scaled_dot_product_attention: query, key, value used; dropout_p checked to be 0; attn_mask, is_causal, scale
    irrelevant: they leave a shift of a row a shift. enable_gqa irrelevant: repeated keys have repeated biases.
    softmax, _softmax: dim checked to be the last; dtype, half_to_float irrelevant. matmul, bmm: both operands used.
    add, sub: operands used; alpha irrelevant: it scales a shift. mul, div: the other operand checked to be the same
    for all keys. where, masked_fill: what hides checked to be in the lower half of the negative range; the condition
    irrelevant. eq: the number checked to be minus infinity. linear: bias checked; weight kept.
    Between them: the moves of ``flowopt.analysis.feature_layout``.

Source: Namazifar et al., "Role of Bias Terms in Dot-Product Attention", arXiv:2302.08626.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import fx

from flowopt.analysis.attention_scores import Rows, is_product, scores_of, shifted_rows
from flowopt.analysis.feature_layout import MOVES, Layout, initial_layout, layout_along, placed_readers
from flowopt.ir.metadata import sizes_as_text, static_size
from flowopt.passes.fold import _layers as layers
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default
_SOFTMAXES = (_aten.softmax.int, _aten._softmax.default)
_EQUAL = _aten.eq.Scalar
_SIZE_READERS = (_aten.sym_size.int,)


@dataclass(frozen=True, slots=True)
class Plan:
    """Call ``layer`` without its bias.

    Attributes:
        layer: the key projection, perhaps packed with features that have a bias of zero.
        between: operators that are repeated, up to attention or the softmax, in graph order.
        kept: values of other features of the layer.
        unshifted: readers of sizes, and of what is hidden.
    """

    layer: fx.Node
    between: tuple[fx.Node, ...]
    kept: tuple[fx.Node, ...]
    unshifted: tuple[fx.Node, ...]


class EliminateKeyBias(RewritePass[Plan]):
    """Remove the bias of attention's key projection, which no softmax sees."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_ATTENTION, *_SOFTMAXES)

    def sites(self, program: Program) -> list[fx.Node]:
        """Attention, and softmaxes of a product's elements."""
        return [n for n in super().sites(program) if n.target is _ATTENTION or scores_of(n)]

    def check(self, site: Site) -> Plan:
        reader, key, scores = _attention(site)
        layer = _projection(site, key)
        axis = initial_layout(layer, -1)
        assert axis is not None  # the number of rows of a weight is known
        found = list(placed_readers(layer, axis))
        own = [r for r in found if r.node is reader and r.source is key]
        site.require(len(own) == 1, "axis-mismatch", f"{key.name} does not hold whole features of {layer.name}", key)
        others = [r for r in found if r not in own]
        sizes = [r for r in others if r.node.target in _SIZE_READERS]
        features = own[0].layout.all_features()
        for other in (r for r in others if r not in sizes):
            if other.layout.all_features() & features:
                _refuse_reader(site, other.source, other.node)
        _require_zero_elsewhere(site, layer, features)
        _require_same_for_all_keys(site, reader, key, own[0].layout)
        behind, unshifted = _shifted(site, reader, scores)
        between = {reader, site.node, *behind, *(n for r in found for n in r.path)}
        kept = dict.fromkeys(r.source for r in others if r not in sizes)
        return Plan(layer, tuple(sorted(between)), tuple(kept), (*(r.node for r in sizes), *unshifted))

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        weight, _ = layers.weight_and_bias(plan.layer)
        with edit.before(plan.layer):
            moved = {plan.layer: edit.call(plan.layer.target, plan.layer.args[0], weight)}
        for node in plan.between:
            with edit.before(node):
                moved[node] = edit.repeat(node, moved)
        for node in (edit.anchor, *plan.kept):
            edit.replace(node, moved[node])
        for node in plan.unshifted:
            with edit.before(node):
                edit.replace(node, edit.repeat(node, moved))
        return f"{plan.layer.name} without its bias"


def _attention(site: Site) -> tuple[fx.Node, fx.Node, tuple[fx.Node, ...]]:
    """The node that reads keys, the keys, and for a softmax the operators that lead to it."""
    node = site.node
    if node.target is not _ATTENTION:
        scores = scores_of(node)
        products = [n for n in scores if is_product(n)]
        # Beside the product with keys there may be one with positions, whose elements are added like a mask.
        product = next((n for n in products if _origin(n.args[1]).target is layers.LINEAR), products[0])
        return product, _key(site, product, product.args), scores
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p"), node.args, strict=False)) | dict(node.kwargs)
    dropout = given.get("dropout_p", 0.0)
    site.require(not dropout, "train-mode", f"dropout_p is {dropout}")
    operands = tuple(given.get(name) for name in ("query", "key", "value", "attn_mask"))
    return node, _key(site, node, operands), ()


def _key(site: Site, reader: fx.Node, operands: tuple[Any, ...]) -> fx.Node:
    key = operands[1]
    assert isinstance(key, fx.Node)
    is_read_once = sum(other is key for other in operands) == 1
    site.require(is_read_once, "multiple-readers", f"{key.name} is more than the keys of {reader.name}", reader)
    return key


def _origin(value: Any) -> fx.Node:
    """What moves lead from. A getitem is of a split, or else what is behind it is no move and no linear layer."""
    while value.target in MOVES or value.target is operator.getitem:
        value = value.args[0]
    assert isinstance(value, fx.Node)
    return value


def _projection(site: Site, key: fx.Node) -> fx.Node:
    """The linear layer that gives the keys, with its stored bias."""
    node = _origin(key)
    message = f"the keys come from {node.name} ({node.target})"
    site.require(node.target is layers.LINEAR, "not-linear-producer", message, node)
    bias = layers.weight_and_bias(node)[1]
    if bias is None:
        site.refuse("no-bias", f"{node.name} has no bias", node)
    # A bias of more axes would differ from key to key.
    fits = len(sizes_as_text(bias)) == 1 and sizes_as_text(bias) == sizes_as_text(node)[-1:]
    message = f"the bias of {node.name} is of shape {sizes_as_text(bias)}"
    site.require(fits and static_size(bias, 0) is not None, "unsupported-spelling", message, node)
    value = site.constant(bias, f"the bias of {node.name}")
    site.require(bool(value.isfinite().all()), "not-finite", f"the bias of {node.name} is not finite", node)
    return node


def _require_zero_elsewhere(site: Site, layer: fx.Node, features: frozenset[int]) -> None:
    bias = layers.weight_and_bias(layer)[1]
    assert bias is not None
    value = site.program.constant(bias)
    others = [i for i in range(value.numel()) if i not in features]
    message = f"{len(others)} other features of {layer.name} have a bias too, which stays"
    site.require(not bool(value[others].any()), "no-gain", message, layer)


def _require_same_for_all_keys(site: Site, reader: fx.Node, key: fx.Node, layout: Layout) -> None:
    # Attention is given keys row by row, a product in columns.
    axis = len(layout.axes) - (2 if reader.target is _ATTENTION else 1)
    is_same = len(layout.axes) > 1 and not layout.holds(axis)
    site.require(is_same, "axis-mismatch", f"{key.name} holds features along the axis of keys", key)


def _shifted(
    site: Site, product: fx.Node, scores: tuple[fx.Node, ...]
) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """Operators from the product to the softmax, in graph order, and readers that see no shift.

    Refuses unless a number that is added to all elements of a row of the product is added to a row of the softmax.
    """
    if product.target is _ATTENTION:
        return (), ()
    keys = layout_along(product, -1)
    assert keys is not None  # a graph without recorded values is not legal
    rows = {product: Rows(keys)}
    for node in scores:
        sources = [n for n in node.all_input_nodes if n in rows]
        if sources:
            source = sources[0]
            found = shifted_rows(node, source, rows[source], site.program.constant)
            if found is None or len(sources) > 1:
                message = f"{node.name} ({node.target}) may turn a shift of a row of {product.name} into something else"
                site.refuse("not-a-row-shift", message, node)
            rows[node] = found
    unshifted = []
    for node in rows:
        for user in node.users:
            # Decomposed attention asks whether all of a row is minus infinity, which no shift changes.
            if user.target in _SIZE_READERS or (user.target is _EQUAL and user.args[1] == -math.inf):
                unshifted.append(user)
            elif user not in rows and user is not site.node:
                _refuse_reader(site, node, user)
    last, axis = site.node.args[:2]
    assert isinstance(last, fx.Node)
    axes = rows[last].keys.axes
    along_last = isinstance(axis, int) and axis % len(axes) == len(axes) - 1
    is_over_keys = along_last and all(run.stride for run in axes[-1])
    site.require(
        is_over_keys, "axis-mismatch", f"the softmax, over axis {axis}, is not over the keys of {product.name}"
    )
    return tuple(n for n in rows if n is not product), tuple(unshifted)


def _refuse_reader(site: Site, source: fx.Node, reader: fx.Node) -> NoReturn:
    if reader.op == "output":
        site.refuse("graph-output", f"{source.name} is an output of the model", reader)
    site.refuse("multiple-readers", f"{source.name} is read by {reader.name} ({reader.target}) too", reader)
