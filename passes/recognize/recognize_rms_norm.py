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

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.ir.metadata import sizes_as_text, static_size
from flowopt.passes.recognize._written_norm import (
    centred_source,
    epsilon_below,
    gain_after,
    mean_source,
    scaled_value,
    squared_value,
    uncast,
)
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
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
        mean, eps = epsilon_below(site)
        x = squared_value(site, mean_source(site, mean))
        centred = uncast(x)
        message = f"{centred.name} has no mean: this is a layer norm"
        site.require(centred_source(centred) is None, "not-a-norm", message, centred)
        kind = site.recorded(x).dtype
        size = static_size(x, -1)
        if size is None:
            site.refuse("dynamic-shape", f"the size of the last axis of {x.name} is not known at capture", x)
        scaled = scaled_value(site, x)
        dtype = site.recorded(scaled).dtype
        wide = dtype in _WIDE and kind == dtype
        message = f"{scaled.name} is computed in {dtype} from {x.name} in {kind}, not in float32"
        site.require(wide, "unsupported-spelling", message, scaled)
        gain = gain_after(scaled)
        return Plan(x, size, gain, eps, scaled if gain is None else next(iter(scaled.users)))

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        with edit.before(plan.value):
            gain = plan.gain
            if gain is not None and len(sizes_as_text(gain)) != 1:
                name = str(gain.target) if gain.op == "get_attr" else f"{edit.anchor.name}.weight"
                gain = edit.parameter(name, edit.constant(gain).flatten(), like=gain)
            edit.replace(plan.value, edit.call(_aten.rms_norm.default, plan.x, [plan.size], gain, plan.eps))
        return f"a written norm over {plan.size} values -> aten.rms_norm"
