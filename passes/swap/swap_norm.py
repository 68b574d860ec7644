"""Swap a norm for the fixed scale and shift that were measured to be nearest to it, or a layer norm for an RMS norm.

    gain * x / sigma(x) + shift  ->  scale * x + shift'          scale, shift': one number for each channel
    layer_norm(x, g, b)          ->  rms_norm(x, g) + b          to=rms

At inference a PowerNorm without group scaling, a unified norm, a norm with a frozen sigma and a batch norm are all the
same map; ``to`` says which of them was trained. The scale and the shift come from calibration (``fits``), or from
training that started there: ``dataclasses.replace(fit, scale=..., shift=...)``. They fold away behind this pass.

Numerical effect: APPROXIMATE. A fixed scale leaves the relative error CV / sqrt(1 + CV^2) of each norm, CV being the
coefficient of variation of sigma over tokens: the fit's score. An RMS norm leaves sqrt(2 - 2 sqrt(1 - m)) of a layer
norm, m being the share of the mean in the mean square. Sites above ``threshold`` are refused. A batch norm in eval mode
is swapped without error. Weights that were trained after the swap, and inputs unlike the calibration data, are judged
on held-out data by ``flowopt adapt``; the budget is for inputs of ordinary numbers.

Refuses when:
    not-measured            ``fits`` has no measurement of the norm, or of another number of channels
    not-chosen              ``only`` names other norms
    unsteady-norm           the score exceeds ``threshold``: a fixed scale is no stand-in (unless ``force``)
    massive-activations     some tokens deviate many times as much as the others, which a fixed scale leaves
                            as they are (unless ``force``)
    not-centred             to=rms: what the layer norm reads has a mean, which the RMS norm would leave in (unless
                            ``force``)
    not-a-norm              to=rms: the norm is no layer norm
    not-finite              a scale or a shift is not finite, or beyond the range of the norm's dtype
    unsupported-spelling    a norm over several axes, with a gain or statistics that are computed at run time, with a
                            free number of channels, or whose saved statistics are read
    missing-metadata        what the norm reads has no recorded shape

Attributes of the matched operators:
    layer_norm, rms_norm: input used; normalized_shape checked to be one axis; weight, bias, eps irrelevant: the fit has
    them in it; used by to=rms. group_norm, instance_norm: input used; num_groups, weight, bias, eps irrelevant
    likewise; use_input_stats checked; momentum, running statistics, cudnn_enabled irrelevant: they belong to training
    or pick a kernel. _native_batch_norm_legit_no_training: input used; weight, bias, statistics, eps irrelevant
    likewise; momentum irrelevant.
    mul and add after a layer or RMS norm with a stored vector: belong to the norm.

Source: Shen et al., "PowerNorm", section 4; Yang et al., "Unified Normalization", section 3; the score follows from
``sigma* = E[s^2] / E[s]``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_parts import NORM_OPERATORS, NormKind, NormParts, gain_and_shift, norm_parts
from flowopt.errors import UserError
from flowopt.ir.metadata import module_path
from flowopt.rewrite import Budget, Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_FIXED = ("power", "unified", "frozen", "batch")
TARGETS = (*_FIXED, "rms")


@dataclass(frozen=True, slots=True)
class Plan:
    """Replace ``output`` by a fixed map of ``source``, or by an RMS norm of it; ``score`` is what that costs."""

    source: fx.Node
    output: fx.Node
    has_shift: bool
    score: float


class SwapNorm(RewritePass[Plan]):
    """Swap a norm for the fixed scale and shift that were measured to be nearest to it."""

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    anchors: ClassVar[tuple[Any, ...]] = NORM_OPERATORS

    to: str = "unified"
    "What takes the norm's place: power, unified, frozen or batch, all a scale and a shift at inference, or rms."
    threshold: float = 0.3
    "Largest relative error of a single norm."
    force: bool = False
    "Swap norms above the threshold too."
    only: str = ""
    "Names of the values to replace, joined by +; empty: all that were measured."
    min_snr_db: float = 10.0
    "Budget on inputs of ordinary numbers: 10 dB is 32 % of relative error, what the threshold leaves of one norm."
    # Measured on data: tensors have no place in a text form.
    fits: Mapping[str, NormFit] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise UserError(f"swap-norm:to={self.to!r} is none of {', '.join(TARGETS)}")

    def budget(self) -> Budget:
        return Budget(min_snr_db=self.min_snr_db)

    def check(self, site: Site) -> Plan:
        parts = _parts(site)
        name = parts.output.name
        chosen = not self.only or name in self.only.split("+")
        site.require(chosen, "not-chosen", f"{name} is not among {self.only}")
        fit = self._fit(site, parts)
        if self.to == "rms":
            return self._as_rms(site, parts, fit)
        ordinary = self.force or fit.massive == 0
        massive = f"{fit.massive} tokens beside {fit.tokens} deviate up to {fit.massive_ratio:.1f} times as much"
        site.require(ordinary, "massive-activations", massive)
        steady = self.force or fit.score <= self.threshold
        message = f"the best fixed scale leaves a relative error of {fit.score:.3f}, allowed {self.threshold:g}"
        site.require(steady, "unsteady-norm", message)
        self._require_finite(site, parts, fit.scale, fit.shift)
        return Plan(parts.source, parts.output, bool(fit.shift.any()), fit.score)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        parts = norm_parts(edit.anchor)
        assert parts is not None
        with edit.before(plan.output):
            value = _rms_norm(edit, parts) if self.to == "rms" else plan.source
            scale, shift = self._affine(edit, parts)
            if self.to != "rms":
                value = edit.call(_aten.mul.Tensor, value, _stored(edit, parts, "scale", scale))
            if plan.has_shift:
                value = edit.call(_aten.add.Tensor, value, _stored(edit, parts, "shift", shift))
            dtype = plan.output.meta["val"].dtype
            if value.meta["val"].dtype != dtype:
                value = edit.call(_aten._to_copy.default, value, dtype=dtype)
            edit.replace(plan.output, value)
        return f"{parts.kind} norm of {parts.channels} channels -> {self.to}, relative error {plan.score:.3f}"

    def _fit(self, site: Site, parts: NormParts) -> NormFit:
        fit = self.fits.get(parts.output.name)
        if fit is None:
            site.refuse("not-measured", f"no calibration data went through {parts.output.name}")
        sizes = {tuple(vector.shape) for vector in (fit.scale, fit.shift, fit.mean_square)}
        message = f"{parts.output.name} has {parts.channels} channels, the measurement {sizes}"
        site.require(sizes == {(parts.channels,)}, "not-measured", message)
        return fit

    def _as_rms(self, site: Site, parts: NormParts, fit: NormFit) -> Plan:
        is_layer = parts.kind is NormKind.LAYER
        site.require(is_layer, "not-a-norm", f"an RMS norm can stand for layer norms, not for a {parts.kind} norm")
        error = error_of_rms(fit)
        message = f"the mean that an RMS norm leaves in is a relative error of {error:.3f}, allowed {self.threshold:g}"
        site.require(self.force or error <= self.threshold, "not-centred", message)
        gain, shift = gain_and_shift(parts, site.program.constant)
        self._require_finite(site, parts, gain, shift)
        return Plan(parts.source, parts.output, bool(shift.any()), error)

    def _require_finite(self, site: Site, parts: NormParts, scale: Tensor, shift: Tensor) -> None:
        limit = torch.finfo(site.recorded(parts.source).dtype).max
        for what, vector in (("scale", scale), ("shift", shift)):
            largest = float(vector.abs().max()) if vector.numel() else 0.0
            site.require(largest <= limit, "not-finite", f"the largest {what} is {largest:.3g}, allowed {limit:.3g}")

    def _affine(self, edit: Edit, parts: NormParts) -> tuple[Tensor, Tensor]:
        if self.to == "rms":
            return gain_and_shift(parts, edit.constant)
        fit = self.fits[parts.output.name]
        return fit.scale, fit.shift


def _parts(site: Site) -> NormParts:
    source = site.node.args[0]
    assert isinstance(source, fx.Node)
    site.recorded(source)
    parts = norm_parts(site.node)
    if parts is None:
        site.refuse("unsupported-spelling", f"{site.node.name} is no norm of vectors of channels with stored gain")
    return parts


def error_of_rms(fit: NormFit) -> float:
    """Relative error of an RMS norm in a layer norm's place, of vectors with the measured means and deviations.

    The vector x = c + m 1 has the length sqrt(c^2 + m^2), and both norms give it length 1: they differ by the chord of
    the angle between x and c, whose cosine is c / sqrt(c^2 + m^2).
    """
    mean_square = float(fit.mean_square.mean())
    # E[s^2] out of sigma* = E[s^2] / E[s] and score^2 = 1 - E[s]^2 / E[s^2].
    variance = fit.sigma**2 * (1.0 - fit.score**2)
    cosine = math.sqrt(min(variance / mean_square, 1.0)) if mean_square > 0 else 1.0
    return math.sqrt(2.0 - 2.0 * cosine)


def _rms_norm(edit: Edit, parts: NormParts) -> fx.Node:
    gain, _ = gain_and_shift(parts, edit.constant)
    weight = edit.parameter(_name(parts, "weight"), gain, like=parts.source)
    return edit.call(_aten.rms_norm.default, parts.source, [parts.channels], weight, parts.eps)


def _stored(edit: Edit, parts: NormParts, what: str, vector: Tensor) -> fx.Node:
    """A vector of channels that broadcasts along the axes behind theirs."""
    value = parts.source.meta["val"]
    shaped = vector.to(value.device).reshape(-1, *[1] * (value.dim() - 1 - parts.axis))
    return edit.parameter(_name(parts, what), shaped, like=parts.source)


def _name(parts: NormParts, what: str) -> str:
    return f"{module_path(parts.norm) or parts.norm.name}.{what}"
