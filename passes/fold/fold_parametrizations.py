"""Fold low-rank adapters, and other layers of the same input, into the layer that they are added to.

    linear(x, W, b) + s linear(linear(x, A), B)             ->  linear(x, W + s B A, b)
    linear(x, W, b) + (m - 1) linear(x, W) + m s B A x      ->  linear(x, m (W + s B A), b)          m scales outputs
    conv(x, W, b) + s conv(conv(x, A), B)                   ->  conv(x, W + s B A, b)                B or A pointwise
    embedding(i, E) + s linear(embedding(i, A), B)          ->  embedding(i, E + s A B^T)

That is LoRA, rsLoRA and DoRA, several adapters at once, and any sum of chains of layers of one value. What is computed
from weights alone (weight norm, DoRA's m, a mask) is ``fold-constants``' to fold.

A site is the last addition of a sum of which two terms or more are chains of layers of one value; elsewhere additions
add other things, and every residual connection would be a refusal. Further addends stay, and are added to the result.

Numerical effect: EXACT. The new weight is computed in float64 and rounded once to the dtype of the largest weight,
where the terms were rounded one by one.

Refuses when:
    multiple-readers        a value between the layers and the sum is read elsewhere too
    graph-output            such a value is an output of the model
    not-constant            a weight, a bias or a scale is computed at run time, or state
    axis-mismatch           the terms do not line up: one is repeated along an axis, or a reshape moves features
    train-mode              dropout was captured in train mode
    grows-too-much          the one layer has more weights than the layers that it replaces (two adapters without a
                            base), or its weight, beside others that read the base's, takes more than ``max_growth``
    lost-in-rounding        rounding the new weight changes it by more than half of what the adapters do
    not-finite              the new weight would overflow its dtype
    unsupported-spelling    a scale or shift that is neither one number nor one per feature; convolutions that move
                            differently over their input, or with groups in a chain; a weight that is a vector; a cast
                            to integers
    missing-metadata        a node without recorded shape

Attributes of the matched operators:
    add, sub: both operands, alpha used. mul, div, neg: operands used. linear: input, weight, bias used.
    conv1d, conv2d, conv3d: input, weight, bias used; stride, padding (also as text), dilation, groups compared.
    embedding: weight, indices used; padding_idx, scale_grad_by_freq, sparse irrelevant: they concern gradients.
    dropout: train checked to be False; p irrelevant then. Casts: dtype checked to be floating; clones, reshapes: sizes
    checked; memory_format irrelevant.

Source: Hu et al., "LoRA", section 4.1; Liu et al., "DoRA", section 4.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.affine_maps import AffineMap, affine_map
from flowopt.analysis.freed_bytes import freed_bytes
from flowopt.analysis.linear_sums import (
    ADDITIONS,
    CONTRACTIONS,
    CONVOLUTIONS,
    RESHAPES,
    SCALES,
    LinearSum,
    bias_of,
    is_per_feature,
    linear_sum,
    linear_sums,
    weight_of,
)
from flowopt.ir.constants import is_parameter_only, needed_nodes
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_Problem = tuple[str, str, fx.Node]


@dataclass(frozen=True, slots=True)
class Plan:
    """One layer like ``base``, of ``source``, takes the place of the sum's terms."""

    total: LinearSum
    base: fx.Node
    source: fx.Node


class FoldParametrizations(RewritePass[Plan]):
    """Fold adapters (LoRA, DoRA) and other layers of the same input into the layer that they are added to.

    Attributes:
        max_growth: bytes by which a new weight may be larger than those that nobody reads any more.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    max_growth: int = 1048576

    def sites(self, program: Program) -> list[fx.Node]:
        """The last additions of sums of which two terms are chains of layers of one value."""
        return linear_sums(program.graph)

    def check(self, site: Site) -> Plan:
        total = _foldable(site)
        _require_unread(site, total)
        merged = affine_map(total, site.program.constant)
        if merged is None:
            site.refuse("unsupported-spelling", "the convolutions move differently over their input, or pad a shift")
        base = _base(total, merged)
        self._require_smaller(site, total, merged, base)
        _require_representable(site, merged, base)
        return Plan(total, base, _source(site, total, base))

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        total, base = plan.total, plan.base
        merged = affine_map(total, edit.constant)
        assert merged is not None  # or else check had refused
        new = _layer(edit, plan, merged)
        for term in total.others:
            if term.factor == 1:
                new = edit.call(_aten.add.Tensor, new, term.node)
            else:
                new = edit.call(
                    _aten.sub.Tensor, new, term.node, **({} if term.factor == -1 else {"alpha": -term.factor})
                )
        _replace(edit, new)
        return f"{len(total.layers)} layers of {total.x.name} -> one like {base.name}"

    def _require_smaller(self, site: Site, total: LinearSum, merged: AffineMap, base: fx.Node) -> None:
        layers = total.layers
        before = sum(site.recorded(weight_of(layer)).numel() for layer in layers)
        count = merged.weight.numel()
        site.require(
            count <= before, "grows-too-much", f"one layer has {count:,} weights, the {len(layers)} have {before:,}"
        )
        size = count * site.recorded(weight_of(base)).element_size()
        stored = [n for operator in total.operators for n in operator.all_input_nodes if is_parameter_only(n)]
        expression = (total.operators - total.before_layers) | needed_nodes(stored, ())
        freed = freed_bytes(site.program.graph, site.program.tensors, expression)
        site.require(
            size <= freed + self.max_growth,
            "grows-too-much",
            f"{size:,} bytes would take the place of {freed:,}; max_growth is {self.max_growth:,}",
        )


def _foldable(site: Site) -> LinearSum:
    """The site's sum with those terms only that can be folded; refuses when these are less than two."""
    total = linear_sum(site.node)
    assert total is not None  # or else it is no site
    site.recorded(total.x)
    convolutions = (n for n in total.operators if n.target in CONVOLUTIONS)
    axis = max((1 - site.recorded(weight_of(n)).dim() for n in convolutions), default=-1)
    # A list: one value added twice is two equal terms.
    problems = [next(_problems(site, total.x, term.node, term.region, axis), None) for term in total.terms]
    judged = list(zip(total.terms, problems, strict=True))
    fitting = tuple(term for term, problem in judged if problem is None)
    if len(fitting) < 2:
        site.refuse(*next(problem for problem in problems if problem is not None))
    others = total.others + tuple(term for term, problem in judged if problem is not None)
    return replace(total, terms=fitting, others=others)


def _problems(site: Site, x: fx.Node, term: fx.Node, region: tuple[fx.Node, ...], axis: int) -> Iterator[_Problem]:
    """What keeps a term from being one layer of ``x``, whose features are on ``axis``, counted from the last."""
    if sizes_as_text(term) != sizes_as_text(site.node):
        yield "axis-mismatch", f"{term.name} is repeated along an axis while it is added", term
    for node in region:
        if node.target in CONTRACTIONS:
            yield from _layer_problems(node, x)
        elif node.target in (*ADDITIONS, *SCALES):
            yield from _operand_problems(node, axis)
        elif node.target in RESHAPES:
            source = node.args[0]
            keeps = (
                axis == -1 and static_size(node, -1) is not None and static_size(node, -1) == static_size(source, -1)
            )
            if not keeps and sizes_as_text(node) != sizes_as_text(source):
                yield "axis-mismatch", f"{node.name} moves features to another axis", node
        elif node.target is _aten.dropout.default and node.args[2] is not False:
            yield "train-mode", f"{node.name} drops values at random", node
        elif not _is_floating(node) or not _is_floating(node.args[0]):
            yield "unsupported-spelling", f"{node.name} casts to or from integers", node


def _layer_problems(layer: fx.Node, x: fx.Node) -> Iterator[_Problem]:
    for stored, what in ((weight_of(layer), "weight"), (bias_of(layer), "bias")):
        if stored is not None and not is_parameter_only(stored):
            yield "not-constant", f"the {what} of {layer.name} ({stored.name}) is not a stored tensor", stored
    rank = len(sizes_as_text(weight_of(layer)))
    if layer.target not in CONVOLUTIONS and rank != 2:
        yield "unsupported-spelling", f"the weight of {layer.name} has {rank} axes, not 2", layer
    if layer.target is _aten.embedding.default and layer.args[1] is not x:
        yield "unsupported-spelling", f"{layer.name} reads indices that are computed from {x.name}", layer


def _operand_problems(node: fx.Node, axis: int) -> Iterator[_Problem]:
    """Of additions and products: values must have the same sizes, others be one number or one per feature."""
    values = [a for a in node.args[:2] if isinstance(a, fx.Node) and not is_parameter_only(a)]
    if len(values) == 2 and node.target in SCALES:
        scale = values[1]
        yield "not-constant", f"{node.name} scales by {scale.name}, which is computed at run time", node
    for value in values:
        if sizes_as_text(value) != sizes_as_text(node):
            yield "axis-mismatch", f"{node.name} repeats {value.name} along an axis", node
    for stored in (a for a in node.args[:2] if isinstance(a, fx.Node) and a not in values):
        if not is_per_feature(stored, node, axis):
            yield "unsupported-spelling", f"{stored.name} holds neither one number nor one per feature", stored


def _base(total: LinearSum, merged: AffineMap) -> fx.Node:
    """The layer that the new one is like: of its shape if there is one, or else the largest."""
    layers = total.layers
    tables = [n for n in layers if n.target is _aten.embedding.default]
    shape = merged.weight.t().shape if tables else merged.weight.shape

    def likeness(layer: fx.Node) -> tuple[bool, int]:
        weight = recorded_tensor(weight_of(layer))
        assert weight is not None  # check has seen it
        return weight.shape == shape, weight.numel()

    return max(tables or layers, key=likeness)


def _require_unread(site: Site, total: LinearSum) -> None:
    inside = total.operators
    # What layers have not touched yet costs nothing: where others read it, it stays for them.
    for node in sorted(inside - total.before_layers - {site.node}):
        for user in node.users:
            message = f"{node.name}, between {total.x.name} and the sum, is read by {user.name} too"
            site.require(user.op != "output", "graph-output", f"{node.name} is an output of the model", node)
            site.require(user in inside, "multiple-readers", message, user)


def _require_representable(site: Site, merged: AffineMap, base: fx.Node) -> None:
    weight = weight_of(base)
    dtype = site.recorded(weight).dtype
    limit = torch.finfo(dtype).max
    values = (merged.weight,) if merged.bias is None else (merged.weight, merged.bias)
    finite = all(bool((t.abs() <= limit).all()) for t in values)
    site.require(finite, "not-finite", f"the folded weight of {base.name} would exceed {limit:.3g}")
    before = site.program.constant(weight)
    before = before.t() if base.target is _aten.embedding.default else before
    change = (merged.weight - before).norm() if before.shape == merged.weight.shape else merged.weight.norm()
    rounding = (merged.weight - merged.weight.to(dtype).double()).norm()
    site.require(
        bool(rounding <= change / 2),
        "lost-in-rounding",
        f"rounding to {dtype} changes the weight of {base.name} by {rounding:.2e}, the adapters by {change:.2e}",
    )


def _source(site: Site, total: LinearSum, base: fx.Node) -> fx.Node:
    """The value that the one layer reads: ``x``, or what it is a reshape of, so that the result has the sum's sizes."""
    if base.target in CONVOLUTIONS:
        return total.x
    source, wanted = total.x, sizes_as_text(site.node)[:-1]
    is_table = base.target is _aten.embedding.default
    while (rows := sizes_as_text(source) if is_table else sizes_as_text(source)[:-1]) != wanted:
        keeps = source.target in RESHAPES and (is_table or static_size(source, -1) == static_size(source.args[0], -1))
        site.require(keeps, "axis-mismatch", f"{source.name} has rows {list(rows)}, the sum has {list(wanted)}", source)
        source = source.all_input_nodes[0]
    return source


def _replace(edit: Edit, new: fx.Node) -> None:
    """Let the readers of the sum read ``new``, which may have a narrower dtype; those that cast to it need no cast."""
    before, after = recorded_tensor(edit.anchor), recorded_tensor(new)
    assert before is not None and after is not None  # calls record what they give
    if before.dtype == after.dtype:
        edit.replace(edit.anchor, new)
        return
    for user in list(edit.anchor.users):
        if user.target is _aten._to_copy.default and user.kwargs == {"dtype": after.dtype}:
            edit.replace(user, new)
    if edit.anchor.users:
        edit.replace(edit.anchor, edit.call(_aten._to_copy.default, new, dtype=before.dtype))


def _layer(edit: Edit, plan: Plan, merged: AffineMap) -> fx.Node:
    base, source = plan.base, plan.source
    stored = weight_of(base)
    weight_name = str(stored.target) if stored.op == "get_attr" else f"{base.name}.weight"
    outputs = merged.weight.shape[0]
    if base.target is _aten.embedding.default:
        table = merged.weight.t() if merged.bias is None else merged.weight.t() + merged.bias
        return edit.call(base.target, edit.parameter(weight_name, table, like=stored), source, *base.args[2:])
    weight = edit.parameter(weight_name, merged.weight, like=stored)
    bias = None
    if merged.bias is not None:
        old = bias_of(base)
        name = f"{weight_name.removesuffix('.weight')}.bias" if old is None or old.op != "get_attr" else str(old.target)
        bias = edit.parameter(name, merged.bias.expand(outputs), like=stored)
    read, kept = recorded_tensor(source), recorded_tensor(stored)
    if read is not None and kept is not None and read.dtype != kept.dtype:
        source = edit.call(_aten._to_copy.default, source, dtype=kept.dtype)
    if merged.sliding is None:
        return edit.call(_aten.linear.default, source, weight, bias)
    sliding = merged.sliding
    named = getattr(_aten, f"conv{merged.weight.dim() - 2}d")
    target = named.padding if isinstance(sliding.padding, str) else named.default
    padding = sliding.padding if isinstance(sliding.padding, str) else list(sliding.padding)
    return edit.call(
        target, source, weight, bias, list(sliding.stride), padding, list(sliding.dilation), sliding.groups
    )


def _is_floating(node: Any) -> bool:
    value: Tensor | None = recorded_tensor(node)
    return value is not None and value.is_floating_point()
