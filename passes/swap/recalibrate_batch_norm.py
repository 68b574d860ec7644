"""Give eval-mode batch norms the statistics of other data.

    batch_norm(x, gain, shift, mean, var)  ->  batch_norm(x, gain, shift, mean', var')

mean' and var' are what the norm would have stored, had it been trained on the data that the model meets now: measured
again, or a mixture of both (``flowopt.recovery.recalibrate``). The weights stay, and the norm folds as before.

Numerical effect: APPROXIMATE, on purpose: the outputs change wherever the data did, and are better by a metric on
that data or not at all. No bound follows from the statistics; the budget is wide, and stops nothing but statistics
that make the outputs several times larger.

Refuses when:
    not-measured            ``statistics`` has nothing of the norm, or of another number of channels
    not-finite              a mean or variance is not finite, negative, or beyond the range of the norm's dtype
    unsupported-spelling    a gain or a statistic is computed at run time, the number of channels is free, or saved
                            statistics are read
    missing-metadata        what the norm reads has no recorded shape

Attributes of the matched operators:
    _native_batch_norm_legit_no_training: running_mean, running_var replaced; input, weight, bias, momentum, eps kept.

Source: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", section 3;
You et al., "Test-time batch statistics calibration for covariate shift", section 3.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.analysis.norm_parts import EVAL_BATCH_NORM, norm_parts
from flowopt.passes.swap._statistics import require_recorded, require_statistics, stored_statistics
from flowopt.rewrite import Budget, Edit, Exactness, RewritePass, Site


@dataclass(frozen=True, slots=True)
class Plan:
    """Give the norm behind ``output`` other statistics."""

    output: fx.Node


class RecalibrateBatchNorm(RewritePass[Plan]):
    """Give eval-mode batch norms the statistics of other data."""

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    anchors: ClassVar[tuple[Any, ...]] = (EVAL_BATCH_NORM,)

    min_snr_db: float = -10.0
    "Budget on inputs of ordinary numbers: at -10 dB the outputs move by three times their size."
    # By the name of the norm's value. Measured on data: tensors have no place in a text form.
    statistics: Mapping[str, ChannelStatistics] = field(default_factory=dict, repr=False)

    def budget(self) -> Budget:
        return Budget(min_snr_db=self.min_snr_db)

    def check(self, site: Site) -> Plan:
        require_recorded(site)
        parts = norm_parts(site.node)
        if parts is None:
            site.refuse("unsupported-spelling", f"{site.node.name} has more than stored vectors, or several readers")
        require_statistics(site, self.statistics, parts.output, parts.source, parts.channels)
        return Plan(parts.output)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        norm = edit.anchor
        found = self.statistics[plan.output.name]
        old = [node for node in norm.args[3:5] if isinstance(node, fx.Node)]
        before = [edit.constant(node) for node in old]
        mean, variance = stored_statistics(edit, found, old[0], old[1])
        new = edit.call(norm.target, *norm.args[:3], mean, variance, *norm.args[5:])
        edit.replace(plan.output, edit.call(operator.getitem, new, 0))
        moved = (found.mean.to(before[0].device) - before[0]).abs() / (before[1] + 1e-12).sqrt()
        return f"means moved by up to {float(moved.max()):.2f} of their channels' deviation"
