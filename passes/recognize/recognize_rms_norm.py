"""Recognize a root-mean-square norm that is written out.

    g * (x * rsqrt(mean(x^2, last axis) + eps))  ->  rms_norm(x, [d], g, eps)

x / sqrt(...) and x * (1 / sqrt(...)) are the same norm, and so is sum(x^2) / d in place of the mean. The gain goes
along where it directly follows; a gain after a cast back to 16 bits stays there, since the cast rounds before it.
Written out the norm goes over the whole value once for the squares, once for their mean, once for the product and once
for the gain; runtimes have one kernel for it. A norm that is computed in float32 between casts stays in float32
between the same casts.

Numerical effect: EXACT. The same mean of squares, epsilon and root of the same numbers, in the same dtype; kernels
may add in another order.

Refuses when:
    not-a-norm              no mean of squares plus epsilon is below the root, the root scales another value than
                            what is squared, or that value is centred: a layer norm
    axis-mismatch           the mean is over other axes than the last one
    dynamic-shape           the size of the last axis is free
    multiple-readers        a value on the way is read elsewhere too
    graph-output            a value on the way is an output of the model
    not-constant            epsilon is computed at run time, or state
    unsupported-spelling    epsilon is missing, not positive, not finite or not one number; the mean drops its axis or
                            casts; the norm is computed in 16 bits, where one operator would round less
    missing-metadata        a node without recorded shape

Attributes of the matched operators:
    rsqrt, sqrt, reciprocal: input used. pow: base used, exponent checked to be 2. square: input used.
    mean, sum: dim checked to be the last axis; keepdim checked; dtype checked to be missing or that of the squares.
    add: operands used; alpha checked to be 1. mul: operands used. div: operands used; rounding_mode has its own
    overload, which is not matched.
    _to_copy: only the dtype, checked to widen; memory_format and the like move no value.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", section 3.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import fx

from flowopt.analysis.norm_affine import feature_vector
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_PRODUCT, _QUOTIENT, _SUM = _aten.mul.Tensor, _aten.div.Tensor, _aten.sum.dim_IntList
_MEANS = (_aten.mean.dim, _SUM)
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Plan:
    """``value`` is the RMS norm of ``x``, times ``gain`` where there is one."""

    x: fx.Node
    size: int
    gain: fx.Node | None
    eps: float
    value: fx.Node


class RecognizeRmsNorm(RewritePass[Plan]):
    """Recognize a root-mean-square norm that is written out."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.rsqrt.default, _aten.sqrt.default)

    def check(self, site: Site) -> Plan:
        mean, eps = _epsilon(site)
        x = _squared(site, _mean_of(site, mean))
        kind = site.recorded(x).dtype
        size = static_size(x, -1)
        if size is None:
            site.refuse("dynamic-shape", f"the size of the last axis of {x.name} is not known at capture", x)
        scaled = _scaled(site, x)
        dtype = site.recorded(scaled).dtype
        wide = dtype in _WIDE and kind == dtype
        message = f"{scaled.name} is computed in {dtype} from {x.name} in {kind}, not in float32"
        site.require(wide, "unsupported-spelling", message, scaled)
        gain = _gain(scaled)
        return Plan(x, size, gain, eps, scaled if gain is None else next(iter(scaled.users)))

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        with edit.before(plan.value):
            gain = plan.gain
            if gain is not None and len(sizes_as_text(gain)) != 1:
                name = str(gain.target) if gain.op == "get_attr" else f"{edit.anchor.name}.weight"
                gain = edit.parameter(name, edit.constant(gain).flatten(), like=gain)
            edit.replace(plan.value, edit.call(_aten.rms_norm.default, plan.x, [plan.size], gain, plan.eps))
        return f"a written norm over {plan.size} values -> aten.rms_norm"


def _epsilon(site: Site) -> tuple[fx.Node, float]:
    """The mean of squares below the root, and what is added to it."""
    total = site.node.args[0]
    if not isinstance(total, fx.Node) or total.target is not _aten.add.Tensor:
        if _is_mean(total):
            site.refuse("unsupported-spelling", f"no epsilon is added to {total} before the root")
        site.refuse("not-a-norm", f"the root is of {total}, not of a mean of squares plus epsilon")
    means = [a for a in total.args[:2] if _is_mean(a)]
    if len(means) != 1:
        site.refuse("not-a-norm", f"{total.name} adds no epsilon to a mean of squares", total)
    (mean,) = means
    assert isinstance(mean, fx.Node)
    _require_only_reader(site, total)
    alpha: Any = total.kwargs.get("alpha", 1)
    site.require(alpha == 1, "unsupported-spelling", f"{total.name} scales what it adds", total)
    other = total.args[1] if total.args[0] is mean else total.args[0]
    if isinstance(other, fx.Node):
        stored = site.constant(other, "epsilon")
        same = sizes_as_text(total) == sizes_as_text(mean) and site.recorded(total).dtype == site.recorded(mean).dtype
        one = stored.numel() == 1 and same
        site.require(one, "unsupported-spelling", f"{other.name} is not one number of the norm's dtype", other)
        other = stored.item()
    eps = float(other) if isinstance(other, (int, float)) else math.nan
    positive = math.isfinite(eps) and eps > 0
    site.require(positive, "unsupported-spelling", f"epsilon is {other}, not a positive number", total)
    return mean, eps


def _is_mean(node: object) -> bool:
    """True for a mean and for the quotient of a sum by a number."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is _QUOTIENT:
        total = node.args[0]
        return isinstance(total, fx.Node) and total.target is _SUM and isinstance(node.args[1], (int, float))
    return node.target is _aten.mean.dim


def _mean_of(site: Site, mean: fx.Node) -> fx.Node:
    """What the mean is taken of, over its last axis."""
    _require_only_reader(site, mean)
    reduced = mean
    if mean.target is _QUOTIENT:
        total = mean.args[0]
        assert isinstance(total, fx.Node)
        _require_only_reader(site, total)
        reduced = total
    source = reduced.args[0]
    assert isinstance(source, fx.Node)
    rank = site.recorded(source).dim()
    axes: Any = reduced.args[1] if len(reduced.args) > 1 else None
    last = isinstance(axes, (list, tuple)) and [a % max(rank, 1) for a in axes] == [rank - 1]
    site.require(last, "axis-mismatch", f"{reduced.name} is over axes {axes}, not over the last one", reduced)
    kept = len(reduced.args) > 2 and reduced.args[2] is True
    site.require(kept, "unsupported-spelling", f"{reduced.name} drops the axis that it reduces", reduced)
    same = site.recorded(mean).dtype == site.recorded(reduced).dtype == site.recorded(source).dtype
    site.require(same, "unsupported-spelling", f"{mean.name} has another dtype than {source.name}", mean)
    if reduced is not mean:
        size = static_size(source, -1)
        if size is None:
            site.refuse("dynamic-shape", f"the size of the last axis of {source.name} is not known at capture", source)
        divisor: Any = mean.args[1]
        site.require(divisor == size, "not-a-norm", f"{mean.name} divides a sum of {size} values by {divisor}", mean)
    return source


def _squared(site: Site, square: fx.Node) -> fx.Node:
    """The value that is squared."""
    base: Any = square.args[0] if square.args else None
    is_square = (
        square.target is _aten.square.default
        or (square.target is _aten.pow.Tensor_Scalar and square.args[1] == 2)
        or (square.target is _PRODUCT and base is square.args[1])
    )
    if not is_square or not isinstance(base, fx.Node):
        site.refuse("not-a-norm", f"{square.name} ({square.target}) is no square", square)
    _require_only_reader(site, square)
    centred = _uncast(base)
    if centred.target is _aten.sub.Tensor:
        mean = centred.args[1]
        if isinstance(mean, fx.Node) and mean.target is _QUOTIENT:
            mean = mean.args[0]
        is_layer_norm = isinstance(mean, fx.Node) and mean.target in _MEANS and mean.args[0] is centred.args[0]
        site.require(not is_layer_norm, "not-a-norm", f"{centred.name} has no mean: this is a layer norm", centred)
    return base


def _scaled(site: Site, x: fx.Node) -> fx.Node:
    """The product of ``x`` with the inverse root."""
    root = site.node
    reader = _require_only_reader(site, root)
    if root.target is _aten.sqrt.default:
        if reader.target is _QUOTIENT and reader.args[1] is root:
            return _require_same(site, x, reader, reader.args[0])
        if reader.target is not _aten.reciprocal.default:
            _refuse_reader(site, root, reader)
        root, reader = reader, _require_only_reader(site, reader)
        # Python's 1.0 / v is a reciprocal and a product with one.
        if reader.target is _PRODUCT and not isinstance(reader.args[1], fx.Node) and reader.args[1] == 1:
            root, reader = reader, _require_only_reader(site, reader)
    if reader.target is not _PRODUCT:
        _refuse_reader(site, root, reader)
    return _require_same(site, x, reader, reader.args[1] if reader.args[0] is root else reader.args[0])


def _require_same(site: Site, x: fx.Node, scaled: fx.Node, other: object) -> fx.Node:
    """``scaled``, where its other operand is ``x``, or what ``x`` is a wider copy of: the product widens it too."""
    same = other is x or (isinstance(other, fx.Node) and other is _uncast(x) and _widens(other, x))
    site.require(same, "not-a-norm", f"{scaled.name} scales {other}, but {x.name} is what is squared", scaled)
    return scaled


def _uncast(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.target is _aten._to_copy.default else None
    return source if isinstance(source, fx.Node) else node


def _widens(source: fx.Node, cast: fx.Node) -> bool:
    before, after = recorded_tensor(source), recorded_tensor(cast)
    return (
        before is not None
        and after is not None
        and before.dtype.is_floating_point
        and torch.promote_types(before.dtype, after.dtype) == after.dtype
        and before.device == after.device
    )


def _gain(scaled: fx.Node) -> fx.Node | None:
    """A stored vector in the norm's dtype that is all that reads ``scaled``, as a factor."""
    reader = next(iter(scaled.users)) if len(scaled.users) == 1 else None
    if reader is None or reader.target is not _PRODUCT:
        return None
    gain, value = feature_vector(reader, scaled), recorded_tensor(scaled)
    vector = recorded_tensor(gain)
    is_same_type = vector is not None and value is not None and vector.dtype == value.dtype
    return gain if is_same_type else None


def _require_only_reader(site: Site, node: fx.Node) -> fx.Node:
    is_output = any(user.op == "output" for user in node.users)
    site.require(not is_output, "graph-output", f"{node.name} is an output of the model", node)
    site.require(len(node.users) == 1, "multiple-readers", f"{node.name} is read {len(node.users)} times", node)
    return next(iter(node.users))


def _refuse_reader(site: Site, root: fx.Node, reader: fx.Node) -> NoReturn:
    site.refuse("not-a-norm", f"{reader.name} ({reader.target}) reads {root.name}, which scales no value", reader)
