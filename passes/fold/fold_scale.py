"""Fold a multiplication or division by a constant scale into the layers before it, or into those behind it.

    s * linear(x, W, b)  =  linear(x, diag(s) W, diag(s) b)          before: a layer's output is scaled
    linear(s * x, W, b)  =  linear(x, W diag(s), b)                  behind: all that reads the product is layers

s is a number, a stored tensor of one element, or a stored factor for each feature (the layer scale of ConvNeXt, CaiT
and DINOv2). Layers are linear layers, convolutions and, before, embeddings (``embedding(ids) * sqrt(d)``). One scale of
a whole value also passes through products, sums and concatenations of what is scaled, so the 1 / sqrt(d) of attention
goes from ``matmul(q, k^T) / sqrt(d)`` through rotary positions into the rows of a packed projection that give q.

The layers before are taken where they can be. A site is a product or a quotient of a computed floating value and a
constant; most multiplications of a model have two computed operands, and are none. The gain of a written norm is none
either, nor the scale of a frozen norm before layers that take it: ``fold-norm-affine``, which runs later, knows their
shift.

Numerical effect: EXACT. W' and b' are computed in float64 and rounded once; for powers of two nothing is rounded.

Refuses when:
    multiple-readers        the value, or the features of a layer that would be scaled, are read elsewhere too
    not-linear-reader       there is no layer before, and what reads the product is no layer
    graph-output            there is no layer before, and the product is an output of the model
    axis-mismatch           the factors do not belong to features of the layer; or their number is free
    extreme-scale           a factor is zero or not finite, or beyond the square root of the dtype's range; or a scaled
                            weight would overflow or lose digits to underflow
    grows-too-much          a tensor that is read elsewhere too (a tied embedding) would be copied, and takes more
                            bytes than ``max_growth``
    not-constant            a weight or a bias is computed at run time, or state
    unsupported-spelling    the product has another dtype or shape than the value

Attributes of the matched operators:
    mul, div: both operands used; a constant divided by the value is no site.
    linear, convolutions: weight, bias, groups used; stride, padding, dilation, output_padding kept: they pad with
    zeros, and choose places, not features. embedding: weight, indices used; padding_idx, scale_grad_by_freq, sparse
    irrelevant: they concern gradients.
    add, sub: alpha irrelevant, it scales what is scaled. matmul, bmm, neg, cat: operands used; dim kept.
    Between them: the moves of ``flowopt.analysis.feature_layout``.

Source: Touvron et al., "Going deeper with Image Transformers", section 2.1 (layer scale); Vaswani et al., "Attention Is
All You Need", section 3.2.1 (scaled attention) and 3.4 (scaled embeddings).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, fx

from flowopt.analysis.feature_layout import Layout
from flowopt.analysis.norm_affine import written_norm_affine
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._frozen_products import products_of_frozen_norms
from flowopt.passes.fold._scaled_after import After, scaled_after, scaled_features_after
from flowopt.passes.fold._scaled_before import Before, Kind, Obstacle, scaled_before
from flowopt.passes.fold._scaled_parameters import Scaled, out_of_range, scaled_parameters
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_QUOTIENTS = (_aten.div.Tensor, _aten.div.Scalar)


@dataclass(frozen=True, slots=True)
class Plan:
    """Fold the scale of ``value`` into ``layers``.

    Attributes:
        value: the operand that is scaled.
        scale: a number, or the node of a constant.
        layers: what takes it.
        between: operators that are repeated behind new layers, in graph order.
        kept: values that stay as they were, of layers that are replaced.
        sizes: readers of sizes.
    """

    value: fx.Node
    scale: float | fx.Node
    layers: tuple[Scaled, ...]
    between: tuple[fx.Node, ...]
    kept: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


class FoldScale(RewritePass[Plan]):
    """Fold a multiplication or division by a constant into a linear layer, convolution or embedding beside it.

    Attributes:
        max_growth: bytes by which the model may grow where a shared tensor has to be copied.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.mul.Tensor, _aten.mul.Scalar, *_QUOTIENTS)
    max_growth: int = 1048576

    def sites(self, program: Program) -> list[fx.Node]:
        """Products and quotients of a computed floating value and a constant; the gains of norms are none."""
        products = [n for n in super().sites(program) if _operands(n) is not None]
        others = _products_with_gains(program) | products_of_frozen_norms(program, products)
        return [n for n in products if n not in others]

    def check(self, site: Site) -> Plan:
        operands = _operands(site.node)
        assert operands is not None  # no rewrite at another site makes an operand constant
        value, scale = operands
        before, after = recorded_tensor(value), recorded_tensor(site.node)
        assert before is not None and after is not None  # a graph without is not legal
        keeps = before.dtype == after.dtype and sizes_as_text(value) == sizes_as_text(site.node)
        site.require(
            keeps,
            "unsupported-spelling",
            f"{before.dtype} {list(before.shape)} becomes {after.dtype} {list(after.shape)}",
        )
        axes = _axes(scale)
        before_it = scaled_before(value, site.node, moves_only=bool(axes))
        behind_it = _behind(site.node, axes)
        plans = [_plan_before(before_it, value, scale, axes), _plan_behind(behind_it, value, scale, axes)]
        problems = []
        for plan in plans:
            problem = None if plan is None else self._problem(site, plan)
            if plan is not None and problem is None:
                return plan
            problems += [] if problem is None else [problem]
        if problems:
            site.refuse(*problems[0])
        _refuse(site, before_it, behind_it)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        factors = _factors(edit.anchor, plan.scale, edit.constant)
        moved: dict[fx.Node, fx.Node] = {}
        if not plan.layers[0].is_before:
            moved[edit.anchor] = plan.value
        else:
            moved |= {scaled.layer: _repeated(edit, scaled, factors, moved) for scaled in plan.layers}
        for node in plan.between:
            with edit.before(node):
                moved[node] = edit.repeat(node, moved)
        if plan.layers[0].is_before:
            edit.replace(edit.anchor, moved[plan.value])
        else:
            for scaled in plan.layers:
                edit.replace(scaled.layer, _repeated(edit, scaled, factors, moved))
        for node in plan.kept:
            edit.replace(node, moved[node])
        for node in plan.sizes:
            with edit.before(node):
                edit.replace(node, edit.repeat(node, moved))
        where = "outputs" if plan.layers[0].is_before else "inputs"
        return f"folded into the {where} of {', '.join(scaled.layer.name for scaled in plan.layers)}"

    def _problem(self, site: Site, plan: Plan) -> tuple[str, str, fx.Node] | None:
        """Why a plan that is right cannot be carried out, or should not."""
        factors = _factors(site.node, plan.scale, site.program.constant)
        parameters: list[fx.Node] = []
        for scaled in plan.layers:
            weight, bias = layers.weight_and_bias(scaled.layer)
            taken = [n for n in (weight, bias) if n is not None and (scaled.is_before or n is weight)]
            for node in taken:
                if not is_parameter_only(node):
                    return "not-constant", f"{node.name}, of {scaled.layer.name}, is not a stored tensor", node
            reason = out_of_range(scaled, factors, [site.program.constant(n) for n in taken], recorded_tensor(weight))
            if reason is not None:
                return "extreme-scale", f"{scaled.layer.name}: {reason}", scaled.layer
            parameters += taken
        freed = layers.freed_bytes(parameters, [scaled.layer for scaled in plan.layers])
        growth = layers.stored_bytes(parameters) - freed
        if growth > self.max_growth:
            message = f"copies of shared tensors would take {growth:,} bytes; max_growth is {self.max_growth:,}"
            return "grows-too-much", message, plan.layers[0].layer
        return None


def _products_with_gains(program: Program) -> set[fx.Node]:
    """Products of a written norm and its gain, which belong to ``fold-norm-affine``."""
    rsqrts = (n for n in program.graph.nodes if n.target is _aten.rsqrt.default)
    norms = [norm for norm in map(written_norm_affine, rsqrts) if norm is not None and norm.bare is not None]
    return {user for norm in norms for user in norm.bare.users if norm.gain in user.args}  # type: ignore[union-attr]


def _operands(node: fx.Node) -> tuple[fx.Node, float | fx.Node] | None:
    """The computed operand and the constant one; None for other products."""
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    ways = [(first, second)] if node.target in _QUOTIENTS else [(first, second), (second, first)]
    for value, scale in ways:
        found = recorded_tensor(value)
        if not isinstance(value, fx.Node) or found is None or not found.is_floating_point():
            continue
        is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        is_stored = isinstance(scale, fx.Node) and recorded_tensor(scale) is not None and is_parameter_only(scale)
        if (is_number or is_stored) and not is_parameter_only(value):
            return value, scale  # type: ignore[return-value]  # a number or a node
    return None


def _axes(scale: float | fx.Node) -> list[int]:
    """The axes, counted from the last, along which a scale has several factors."""
    found = recorded_tensor(scale)
    return [] if found is None else [axis for axis in range(-found.dim(), 0) if found.shape[axis] != 1]


def _behind(product: fx.Node, axes: list[int]) -> After | Obstacle:
    if not axes:
        return scaled_after(product)
    if len(axes) > 1:
        return Obstacle(Kind.OTHER_AXIS, f"the factors of {product.name} go along {len(axes)} axes", product)
    return scaled_features_after(product, len(sizes_as_text(product)) + axes[0])


def _plan_before(found: Before | Obstacle, value: fx.Node, scale: float | fx.Node, axes: list[int]) -> Plan | None:
    if isinstance(found, Obstacle):
        return None
    scaled = []
    for part in found.parts:
        features, spread = tuple(sorted(part.features)), None
        if axes:
            placed = None if part.layout is None else _spread(part.layout, axes)
            if placed is None:
                return None
            features, spread = placed
        scaled.append(Scaled(part.layer, True, features, spread))
    return Plan(value, scale, tuple(scaled), found.between, found.kept, found.sizes)


def _plan_behind(found: After | Obstacle, value: fx.Node, scale: float | fx.Node, axes: list[int]) -> Plan | None:
    if isinstance(found, Obstacle):
        return None
    scaled = [Scaled(sink.layer, False, sink.columns if axes else None) for sink in found.sinks]
    return Plan(value, scale, tuple(scaled), found.between, (), found.sizes)


def _spread(layout: Layout, axes: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The features at the places of a value, and the shape of those places; None where a feature has two factors."""
    rank = len(layout.axes)
    if any(not layout.axes[axis] or not all(run.stride for run in layout.axes[axis]) for axis in axes):
        return None
    featured = layout.featured_axes()
    if not all(run.size.is_Integer for axis in featured for run in layout.axes[axis]):
        return None
    shape = tuple(prod(int(r.size) for r in layout.axes[a]) if a in featured else 1 for a in range(rank))
    return layout.features(*featured), shape


def _factors(node: fx.Node, scale: float | fx.Node, constant: Callable[[fx.Node], Tensor]) -> Tensor:
    """The scale as factors, in float64."""
    found = constant(scale).double() if isinstance(scale, fx.Node) else torch.tensor(scale, dtype=torch.float64)
    return found.reciprocal() if node.target in _QUOTIENTS else found


def _repeated(edit: Edit, scaled: Scaled, factors: Tensor, moved: dict[fx.Node, fx.Node]) -> fx.Node:
    """The layer's call with scaled parameters."""
    layer = scaled.layer
    weight_node, bias_node = layers.weight_and_bias(layer)
    old_bias = None if bias_node is None else edit.constant(bias_node)
    weight, *bias = scaled_parameters(scaled, factors, edit.constant(weight_node), old_bias)
    with edit.before(layer):
        new = edit.parameter(layers.parameter_name(weight_node, f"{layer.name}.weight"), weight, like=weight_node)
        if bias and bias_node is not None:
            bias_node = edit.parameter(layers.parameter_name(bias_node, f"{layer.name}.bias"), bias[0], like=bias_node)
        args, kwargs = layers.with_parameters(layer, new, bias_node)
        return edit.call(layer.target, *(moved.get(a, a) if isinstance(a, fx.Node) else a for a in args), **kwargs)


def _refuse(site: Site, before: Before | Obstacle, behind: After | Obstacle) -> NoReturn:
    """Say what stands in the way: before, if a layer is there."""
    if isinstance(before, Before) or before.kind is Kind.OTHER_AXIS:
        node = before.node if isinstance(before, Obstacle) else before.parts[0].layer
        site.refuse("axis-mismatch", f"the factors are not those of features of {node.name}", node)
    if before.kind is Kind.READ_ELSEWHERE:
        site.refuse("multiple-readers", before.message, before.node)
    assert isinstance(behind, Obstacle)  # a plan was made of all else
    message = f"{before.message}, and {behind.message}"
    if behind.kind is Kind.OUTPUT:
        site.refuse("graph-output", message, behind.node)
    if behind.kind is Kind.OTHER_AXIS:
        site.refuse("axis-mismatch", message, behind.node)
    site.refuse("not-linear-reader", message, behind.node)
