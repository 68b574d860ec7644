"""Fold an eval-mode batch norm into the convolution or linear layer before it.

    s = gamma / sqrt(running_var + eps)      t = beta - s * running_mean        gamma = 1, beta = 0 where missing
    batch_norm(conv(x, W, b))  =  conv(x, s W, s b + t)                         s scales the output channels

The output channel is axis 0 of a weight. A transposed convolution stores (in, out / groups, ...): there the channel
c of group j is s[j * out / groups + c], so the weight is viewed as (groups, in / groups, out / groups, ...).

Numerical effect: EXACT. W' and b' are computed in float64 and rounded once. Where a variance is tiny, s is large and
b' cancels; ``min_variance`` refuses that.

Refuses when:
    train-mode              the norm was captured in train mode
    batch-statistics        the norm keeps no running statistics and normalises by the batch in eval mode too
    not-linear-producer     what comes before is neither a convolution nor a linear layer
    multiple-readers        the layer's output, or the norm's saved statistics, are read elsewhere too
    axis-mismatch           the norm's channels are not the layer's outputs (Linear -> BatchNorm1d over (N, L, C))
    not-constant            a weight or a statistic is computed at run time, or state
    tiny-scale              a running variance is below ``min_variance``
    not-finite              a folded weight would overflow its dtype
    unsupported-spelling    the norm sees some of the layer's channels only; or canonicalize-aten has not run
    missing-metadata        a node without recorded shape

The fold belongs to the call, not to the module: a convolution called twice with a norm after one call keeps its
weight for the other call.

Attributes of the matched operators:
    _native_batch_norm_legit_no_training: input, weight, bias, running_mean, running_var, eps used; momentum
    irrelevant: it moves statistics in training only.
    convolutions: weight, bias, groups and transposed used; stride, padding (also as text), dilation and
    output_padding kept: scaling output channels commutes with them. linear: weight, bias used.
    Between them: clones, casts, reshapes and transposes that keep the channels together.

Source: Jacob et al., "Quantization and Training of Neural Networks ...", section 3.2.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.axes import FeatureAxis, feature_axis, follow
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_CONVOLUTIONS = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv1d.padding,
    _aten.conv2d.padding,
    _aten.conv3d.padding,
)
_TRANSPOSED = (
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
)
_GROUPS_OF_TRANSPOSED = 6
_EVAL_NORM = _aten._native_batch_norm_legit_no_training.default
# (input, gain, shift, running mean, running variance, training, ...); eval mode is canonicalize-aten's to respell.
_OTHER_NORMS = (
    _aten._native_batch_norm_legit_functional.default,
    _aten.native_batch_norm.default,
    _aten.batch_norm.default,
)
_BATCH_NORM = _aten._native_batch_norm_legit.no_stats


@dataclass(frozen=True, slots=True)
class Plan:
    """Scale and shift the output channels of ``layer``; ``path`` leads from it to the norm's ``value``."""

    layer: fx.Node
    path: tuple[fx.Node, ...]
    value: fx.Node
    groups: int
    transposed: bool


class FoldBatchNorm(RewritePass[Plan]):
    """Fold an eval-mode batch norm into the convolution or linear layer before it."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_EVAL_NORM, *_OTHER_NORMS, _BATCH_NORM)

    min_variance: float = 1e-12
    """Smallest running variance plus epsilon that is folded."""

    def check(self, site: Site) -> Plan:
        norm = site.node
        _require_eval_norm(site)
        extra = [u for u in norm.users if u.target is not operator.getitem or u.args[1] != 0]
        site.require(not extra, "multiple-readers", "the norm's saved statistics are read", *extra[:1])
        layer, path = _producer(site)
        groups, transposed = _layout(layer)
        plan = Plan(layer, path, next(iter(norm.users)), groups, transposed)
        self._require_foldable(site, plan)
        return plan

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        scale, shift = _scale_and_shift(edit.anchor, edit.constant)
        layer = plan.layer
        weight_node, bias_node = _weight_and_bias(layer)
        bias = None if bias_node is None else edit.constant(bias_node)
        weight, bias = _folded(edit.constant(weight_node), bias, scale, shift, plan)
        prefix = _prefix(weight_node, layer)
        with edit.before(layer):
            new_weight = edit.parameter(f"{prefix}.weight", weight, like=weight_node)
            new_bias = edit.parameter(f"{prefix}.bias", bias, like=bias_node or weight_node)
            rest = layer.args[3:]
            kwargs = {k: v for k, v in layer.kwargs.items() if k not in ("weight", "bias")}
            new = edit.call(layer.target, layer.args[0], new_weight, new_bias, *rest, **kwargs)
        moved = {layer: new}
        for node in plan.path:
            with edit.before(node):
                moved[node] = edit.repeat(node, moved)
        edit.replace(plan.value, moved[plan.path[-1]] if plan.path else new)
        return f"folded into {layer.name}"

    def _require_foldable(self, site: Site, plan: Plan) -> None:
        variance = site.constant(site.node.args[4], "the running variance") + float(site.node.args[6])  # type: ignore[arg-type]  # eps
        smallest = float(variance.min()) if variance.numel() else 1.0
        site.require(
            smallest >= self.min_variance,
            "tiny-scale",
            f"running variance + eps is {smallest:.3g} in a channel",
        )
        for argument, what in ((1, "gain"), (2, "shift"), (3, "running mean")):
            if site.node.args[argument] is not None:
                site.constant(site.node.args[argument], f"the {what}")
        weight_node, bias_node = _weight_and_bias(plan.layer)
        weight = site.constant(weight_node, f"the weight of {plan.layer.name}")
        bias = None if bias_node is None else site.constant(bias_node, f"the bias of {plan.layer.name}")
        scale, shift = _scale_and_shift(site.node, site.program.constant)
        channels = weight.shape[1] * plan.groups if plan.transposed else weight.shape[0]
        fits = scale.shape == (channels,) and (bias is None or bias.shape == (channels,))
        site.require(
            fits,
            "unsupported-spelling",
            f"{scale.numel()} channels in the norm, {channels} in {plan.layer.name}",
        )
        limit = torch.finfo(site.recorded(weight_node).dtype).max
        finite = all(bool((t.abs() <= limit).all()) for t in _folded(weight, bias, scale, shift, plan))
        site.require(finite, "not-finite", f"the folded weight of {plan.layer.name} would exceed {limit:.3g}")


def _require_eval_norm(site: Site) -> None:
    norm = site.node
    without_statistics = norm.target is _BATCH_NORM or None in norm.args[3:5]
    site.require(not without_statistics, "batch-statistics", "the norm has no running statistics")
    if norm.target in _OTHER_NORMS:
        site.require(norm.args[5] is False, "train-mode", f"{norm.target} was captured in train mode")
        site.refuse("unsupported-spelling", f"{norm.target}: run canonicalize-aten first")


def _producer(site: Site) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The layer whose output is normalised, and the moving operators between; refuses what does not fit."""
    norm = site.node
    chain = list(_chain_before(norm))
    layer = chain[-1]
    is_layer = layer.target in _CONVOLUTIONS or layer.target in _TRANSPOSED or layer.target is _aten.linear.default
    site.require(is_layer, "not-linear-producer", f"the norm reads {layer.name} ({layer.target})", layer)
    for node in chain:
        site.require(len(node.users) == 1, "multiple-readers", f"{node.name} is read {len(node.users)} times", node)
    path = tuple(reversed(chain[:-1]))
    rank = site.recorded(layer).dim()
    # Unbatched convolutions have their channels first; everything else that a batch norm accepts has them second.
    axis = rank - 1 if layer.target is _aten.linear.default else rank - _spatial_axes(site, layer) - 1
    at: FeatureAxis | None = feature_axis(layer, axis)
    source = layer
    for node in path:
        at = None if at is None else follow(node, source, at)
        source = node
    found = "lost on the way" if at is None else f"axis {at.axis}"
    site.require(
        at is not None and at.axis == 1,
        "axis-mismatch",
        f"the norm's channels are axis 1, those of {layer.name} are {found}",
        layer,
    )
    return layer, path


def _chain_before(norm: fx.Node) -> Iterator[fx.Node]:
    """From the norm's input upwards, through operators that could be moving it, to the first that is not."""
    node = norm.args[0]
    while isinstance(node, fx.Node):
        yield node
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not _may_move(node, source):
            return
        node = source


def _may_move(node: fx.Node, source: fx.Node) -> bool:
    value = source.meta.get("val")
    axes = value.dim() if isinstance(value, Tensor) else 0
    places = (feature_axis(source, axis) for axis in range(axes))
    return any(at is not None and follow(node, source, at) is not None for at in places)


def _layout(layer: fx.Node) -> tuple[int, bool]:
    if layer.target not in _TRANSPOSED:
        return 1, False
    groups = layer.args[_GROUPS_OF_TRANSPOSED] if len(layer.args) > _GROUPS_OF_TRANSPOSED else 1
    assert isinstance(groups, int)
    return groups, True


def _spatial_axes(site: Site, layer: fx.Node) -> int:
    return site.recorded(_weight_and_bias(layer)[0]).dim() - 2


def _scale_and_shift(norm: fx.Node, constant: Any) -> tuple[Tensor, Tensor]:
    _, gain, shift, mean, variance, _, eps = norm.args[:7]
    scale = torch.rsqrt(constant(variance) + eps)
    if gain is not None:
        scale = scale * constant(gain)
    moved = -scale * constant(mean)
    return scale, moved if shift is None else moved + constant(shift)


def _folded(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    spatial = [1] * (weight.dim() - 2)
    if plan.transposed:
        grouped = weight.reshape(plan.groups, -1, *weight.shape[1:])
        new = (grouped * scale.reshape(plan.groups, 1, -1, *spatial)).reshape(weight.shape)
    else:
        new = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return new, shift if bias is None else scale * bias + shift


def _weight_and_bias(layer: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    bias = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    return weight, bias if isinstance(bias, fx.Node) else None


def _prefix(weight: fx.Node, layer: fx.Node) -> str:
    return str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else layer.name
