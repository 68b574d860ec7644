"""Freeze a batch norm that goes by the batch at hand: give it the statistics of some data for good.

    (x - m) / sqrt(v + eps)  ->  batch_norm(x, m*, v*)       m, v of the batch:  m*, v* are those of the data
                                                             m, v mixed:  stored + target_weight * those of the data

A batch norm that keeps no running statistics normalises by the batch in eval mode too, and an alpha-BN by a mixture of
stored statistics with the batch's. What a sample gets then depends on what else is in its batch, and nothing folds.
With statistics for good it is a batch norm in eval mode, which folds.

Each keeps the variance that it divides by: that of the values themselves (biased) without statistics, the unbiased one
in a mixture. On the data in one batch, nothing changes.

Numerical effect: APPROXIMATE. The outputs are those that the sample would get in one batch of all the data; how far
that is from its own batch depends on that batch, most of all on how small it is. The budget is for inputs of ordinary
numbers, which need not be like the data: it is wide.

Refuses when:
    not-measured            ``statistics`` has nothing of the norm, or of another number of channels
    not-a-norm              a root that belongs to no alpha-BN: other operators, a gain or shift or mixture that is
                            computed at run time, statistics of something else than all samples and places of the norm's
                            input (a padding mask), or something else than their mean and unbiased variance (half of
                            it, its root); or a batch norm with running statistics
    axis-mismatch           the channels are not on axis 1, where a batch norm has them
    not-finite              a mean or variance is not finite, negative, or beyond the range of the norm's dtype
    multiple-readers        the saved statistics are read
    missing-metadata        what the operator reads has no recorded shape

Attributes of the matched operators:
    _native_batch_norm_legit (without statistics), native_batch_norm, batch_norm: input, weight, bias, eps used;
    running_mean, running_var checked to be missing; training irrelevant: without statistics it is of the batch either
    way; momentum irrelevant, nothing moves; cudnn_enabled irrelevant: it picks a kernel.
    sqrt, div, sub: operands used. add: operands used, alpha checked to be 1. mul: operands used. sum: dim checked to be
    all axes but that of the channels; keepdim irrelevant: what is made of the sum is not kept; dtype checked to be
    floating point. mean: likewise. reshape, view, unsqueeze: of vectors of channels, their shape checked where x meets
    them. full: fill value used; the rest irrelevant. where: condition checked to hold always; the other value is never
    taken. gt: operands used. clamp: min checked to be 1, max to be missing. cat, split_with_sizes: sizes checked to be
    the same before and behind, along the only axis.

Source: You et al., "Test-time batch statistics calibration for covariate shift", section 3.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.batch_dependent_norms import (
    OTHERS_WITHOUT_STATISTICS,
    ROOT,
    WITHOUT_STATISTICS,
    BatchDependentNorm,
    batch_dependent_norm,
)
from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.analysis.norm_parts import EVAL_BATCH_NORM
from flowopt.passes.swap._statistics import require_recorded, require_statistics, stored_statistics
from flowopt.rewrite import Budget, Edit, Exactness, RewritePass, Site

# It moves statistics in training alone; torch's default.
_MOMENTUM = 0.1
_TO = torch.ops.aten._to_copy.default


@dataclass(frozen=True, slots=True)
class Plan:
    """Replace a norm's value by that of an eval-mode batch norm."""

    norm: BatchDependentNorm


class FreezeTestTimeNorm(RewritePass[Plan]):
    """Freeze a batch norm that goes by the batch at hand, on the statistics of some data."""

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    anchors: ClassVar[tuple[Any, ...]] = (WITHOUT_STATISTICS, *OTHERS_WITHOUT_STATISTICS, ROOT)

    min_snr_db: float = -10.0
    "Budget on inputs of ordinary numbers: at -10 dB the outputs move by three times their size."
    # By the name of the norm's value: of what it reads. Measured on data: tensors have no place in a text form.
    statistics: Mapping[str, ChannelStatistics] = field(default_factory=dict, repr=False)

    def budget(self) -> Budget:
        return Budget(min_snr_db=self.min_snr_db)

    def check(self, site: Site) -> Plan:
        require_recorded(site)
        node = site.node
        read = [u for u in node.users if u.target is operator.getitem and u.args[1] != 0]
        site.require(not read, "multiple-readers", "the norm's saved statistics are read", *read[:1])
        norm = batch_dependent_norm(node, site.program.constant)
        if norm is None:
            site.refuse("not-a-norm", f"{node.name} belongs to no batch norm that goes by its batch")
        message = f"the channels of {norm.output.name} are on axis {norm.axis}, not 1"
        site.require(norm.axis == 1, "axis-mismatch", message, norm.output)
        require_statistics(site, self.statistics, norm.output, norm.source, norm.channels)
        return Plan(norm)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        norm = plan.norm
        found = self.statistics[norm.output.name]
        if norm.stored is not None:
            own = [edit.constant(node).flatten() for node in norm.stored]
            shares = [norm.target_weight * vector.to(own[0].device) for vector in found]
            found = ChannelStatistics(own[0] + shares[0], own[1] + shares[1])
        with edit.before(norm.output):
            source, dtype = norm.source, norm.output.meta["val"].dtype
            if source.meta["val"].dtype != dtype:
                # Statistics or a gain of more bits made it that of the output: a batch norm's comes from its input.
                source = edit.call(_TO, source, dtype=dtype)
            mean, variance = stored_statistics(edit, found, source, source)
            named = ((norm.gain, "weight"), (norm.shift, "bias"))
            gain, shift = (_stored_vector(edit, vector, name, source) for vector, name in named)
            new = edit.call(EVAL_BATCH_NORM, source, gain, shift, mean, variance, _MOMENTUM, norm.eps)
            edit.replace(norm.output, edit.call(operator.getitem, new, 0))
        return f"{norm.channels} channels, {norm.target_weight:g} of their statistics from the data"


def _stored_vector(edit: Edit, vector: fx.Node | None, name: str, source: fx.Node) -> fx.Node | None:
    """A vector of one axis in the dtype of what is normalised, as the operator takes it."""
    if vector is None:
        return None
    recorded: Tensor = vector.meta["val"]
    if recorded.dim() == 1 and recorded.dtype == source.meta["val"].dtype:
        return vector
    return edit.parameter(f"{edit.anchor.name}.{name}", edit.constant(vector).flatten(), like=source)
