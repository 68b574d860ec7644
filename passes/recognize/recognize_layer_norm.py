"""Recognize a layer norm that is written out.

    c = x - mean(x, last axis);  g * (c * rsqrt(mean(c^2, last axis) + eps)) + b  ->  layer_norm(x, [d], g, b, eps)

c / sqrt(...) and c * (1 / sqrt(...)) are the same norm; so is var(x, correction=0) in place of the mean of c^2, and
sum(...) / d in place of a mean. Gain and shift go along where they directly follow in the norm's dtype, the shift
behind a gain alone. Written out the norm goes over the whole value six times; runtimes have one kernel for it, and
other passes know it by its name.

Numerical effect: EXACT. The same mean, mean of squares, epsilon and root of the same numbers in the same dtype; kernels
may add in another order.

Refuses when:
    not-a-norm              no mean of squares or variance plus epsilon is below the root; what is squared has its mean
                            yet: an RMS norm, or none; or the root scales another value
    axis-mismatch           a mean or the variance is over other axes than the last one
    dynamic-shape           the size of the last axis is free
    multiple-readers        a value on the way is read elsewhere too
    graph-output            a value on the way is an output of the model
    not-constant            epsilon is computed at run time, or state
    unsupported-spelling    epsilon is missing, not positive, not finite or not one number; a mean drops its axis or
                            casts; the variance is that of a sample (correction 1); the norm is computed in 16 bits,
                            where one operator would round less
    missing-metadata        a node without recorded shape

Attributes of the matched operators:
    rsqrt, sqrt, reciprocal: input used. pow: base used, exponent checked to be 2. square: input used.
    mean, sum: dim checked to be the last axis; keepdim checked; dtype checked to be missing or that of the input.
    var: dim, keepdim checked likewise; correction checked to be 0. sub, add: operands used; alpha checked to be 1.
    mul: operands used. div: operands used; rounding_mode has its own overload, which is not matched.

Source: Ba et al., "Layer Normalization", section 3.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.analysis.norm_affine import feature_vector
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.passes.recognize._written_norm import (
    VARIANCES,
    centred_source,
    epsilon_below,
    gain_after,
    mean_source,
    require_only_reader,
    scaled_value,
    squared_value,
)
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Plan:
    """``value`` is the layer norm of ``x``, times ``gain`` and plus ``shift`` where there are some."""

    x: fx.Node
    size: int
    gain: fx.Node | None
    shift: fx.Node | None
    eps: float
    value: fx.Node


class RecognizeLayerNorm(RewritePass[Plan]):
    """Recognize a layer norm that is written out."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.rsqrt.default, _aten.sqrt.default)

    def check(self, site: Site) -> Plan:
        below, eps = epsilon_below(site, or_variance=True)
        is_variance = below.target in VARIANCES
        if is_variance:
            centred = _centred_beside(site, _varied(site, below))
        else:
            centred = squared_value(site, mean_source(site, below))
        x = _source(site, centred)
        size = static_size(x, -1)
        if size is None:
            site.refuse("dynamic-shape", f"the size of the last axis of {x.name} is not known at capture", x)
        scaled = scaled_value(site, centred)
        _require_readers(site, centred, 1 if is_variance else 2)
        dtype = site.recorded(scaled).dtype
        is_wide = dtype in _WIDE and site.recorded(x).dtype == dtype
        message = f"{scaled.name} is computed in {dtype} from {x.name} in {site.recorded(x).dtype}, not in float32"
        site.require(is_wide, "unsupported-spelling", message, scaled)
        gain = gain_after(scaled)
        weighted = scaled if gain is None else next(iter(scaled.users))
        shift = None if gain is None else _shift_after(weighted)
        value = weighted if shift is None else next(iter(weighted.users))
        return Plan(x, size, gain, shift, eps, value)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        with edit.before(plan.value):
            gain, shift = (_flat(edit, vector) for vector in (plan.gain, plan.shift))
            new = edit.call(_aten.layer_norm.default, plan.x, [plan.size], gain, shift, plan.eps)
            edit.replace(plan.value, new)
        return f"a written norm over {plan.size} values -> aten.layer_norm"


def _varied(site: Site, variance: fx.Node) -> fx.Node:
    """What the variance is of, over its last axis."""
    require_only_reader(site, variance)
    source = variance.args[0]
    assert isinstance(source, fx.Node)
    rank = site.recorded(source).dim()
    axes: Any = variance.args[1] if len(variance.args) > 1 else None
    is_last = isinstance(axes, (list, tuple)) and [a % max(rank, 1) for a in axes] == [rank - 1]
    site.require(is_last, "axis-mismatch", f"{variance.name} is over axes {axes}, not over the last one", variance)
    given: dict[str, Any] = dict(zip(("unbiased", "keepdim"), variance.args[2:], strict=False)) | variance.kwargs
    correction = given.get("correction", int(given.get("unbiased", True)))
    message = f"{variance.name} divides by the number of values less {correction}"
    site.require(bool(correction == 0), "unsupported-spelling", message, variance)
    is_kept = given.get("keepdim") is True
    site.require(is_kept, "unsupported-spelling", f"{variance.name} drops the axis that it reduces", variance)
    return source


def _centred_beside(site: Site, source: fx.Node) -> fx.Node:
    """The value less its mean that the root of its variance scales."""
    found = [user for user in source.users if centred_source(user) is source]
    site.require(bool(found), "not-a-norm", f"no mean is subtracted from {source.name}, whose variance this is", source)
    return found[0]


def _source(site: Site, centred: fx.Node) -> fx.Node:
    """What a centred value is computed from, with its mean over the last axis."""
    source = centred_source(centred)
    if source is None:
        site.refuse("not-a-norm", f"{centred.name} ({centred.target}) is not a value less its mean", centred)
    alpha: Any = centred.kwargs.get("alpha", 1)
    site.require(alpha == 1, "unsupported-spelling", f"{centred.name} scales what it subtracts", centred)
    mean = centred.args[1]
    assert isinstance(mean, fx.Node)
    averaged = mean_source(site, mean)
    assert averaged is source  # centred_source compared them
    return source


def _require_readers(site: Site, centred: fx.Node, count: int) -> None:
    """The product with the root reads it, and where it is squared the square does."""
    is_output = any(user.op == "output" for user in centred.users)
    site.require(not is_output, "graph-output", f"{centred.name} is an output of the model", centred)
    message = f"{centred.name} is read {len(centred.users)} times"
    site.require(len(centred.users) == count, "multiple-readers", message, centred)


def _shift_after(weighted: fx.Node) -> fx.Node | None:
    """A stored vector in the norm's dtype that is all that is added to ``weighted``, by its only reader."""
    reader = next(iter(weighted.users)) if len(weighted.users) == 1 else None
    if reader is None or reader.target is not _aten.add.Tensor or reader.kwargs.get("alpha", 1) != 1:
        return None
    shift, value = feature_vector(reader, weighted), recorded_tensor(weighted)
    vector = recorded_tensor(shift)
    is_same_type = vector is not None and value is not None and vector.dtype == value.dtype
    return shift if is_same_type else None


def _flat(edit: Edit, vector: fx.Node | None) -> fx.Node | None:
    """A vector of one axis, as the operator takes it."""
    if vector is None or len(sizes_as_text(vector)) == 1:
        return vector
    name = str(vector.target) if vector.op == "get_attr" else f"{edit.anchor.name}.{vector.name}"
    return edit.parameter(name, edit.constant(vector).flatten(), like=vector)
