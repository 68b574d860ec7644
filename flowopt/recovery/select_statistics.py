"""Choose between a batch norm's own statistics, the target's, and mixtures of both."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.recovery.recalibrate import Batch, Statistics, alpha, reestimate, require_share
from flowopt.recovery.with_statistics import run_with_statistics

Runner = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
# The target's weights that are tried: the stored statistics first, re-estimation last.
WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one weight of the target came to.

    Attributes:
        target_weight: 0 is the source's own statistics, 1 re-estimation, between them alpha-BN.
        statistics: of every batch norm, for ``recalibrate-batch-norm``.
        figure: of the measure.
    """

    target_weight: float
    statistics: Mapping[str, ChannelStatistics]
    figure: float

    @property
    def name(self) -> str:
        """In words."""
        if self.target_weight in (0.0, 1.0):
            return "source" if self.target_weight == 0.0 else "re-estimated"
        return f"alpha {self.target_weight:g}"


@dataclass(frozen=True, slots=True)
class Selection:
    """The best trial, and all of them in the order of their weights."""

    chosen: Trial
    trials: tuple[Trial, ...]


def selected(
    program: Program,
    batches: Iterable[Batch],
    measure: Callable[[Runner], float] | None = None,
    *,
    weights: Sequence[float] = WEIGHTS,
    output: str | None = None,
    class_axis: int = 1,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Selection:
    """Try mixtures of stored and target statistics, and choose the best by a metric or by prediction entropy.

    Every candidate is measured with statistics for good, as the model will have them: no sample depends on its batch.

    Args:
        program: never changed.
        batches: unlabelled target data, inputs by name; kept in memory.
        measure: where there are labels: takes a function that runs the model for inputs by name, and returns a figure
            that is the larger the better, such as accuracy. Without it the mean entropy of the predictions decides,
            smaller being better: a proxy that confident mistakes lower, too.
        weights: of the target, 0 to 1; the first of equal ones is taken, so that the least change is.
        output: whose logits are the predictions; may be left out where there is one output.
        class_axis: of the classes.
        on_progress: gets one line per trial and batch.

    Raises:
        UserError: as ``reestimate``; no weight, or one outside; several outputs and none named; no such
            output, or one class alone; a figure that is NaN.

    Source: You et al., "Test-time batch statistics calibration for covariate shift", section 3, for the mixture; Wang
    et al., "Tent: fully test-time adaptation by entropy minimization", section 3, for entropy as a stand-in for error.
    """
    data = list(batches)
    if not weights:
        raise UserError("weights is empty", hint=f"the default is {WEIGHTS}")
    for weight in weights:
        require_share(weight)
    logits = _logits(program, output) if measure is None else ""
    trials: list[Trial] = []
    for weight in sorted(weights):
        on_progress(f"target weight {weight:g}")
        statistics = alpha(program, reestimate(program, data, target_weight=weight, on_progress=on_progress), weight)
        run = _runner(program, statistics)
        figure = _entropy(run, data, logits, class_axis) if measure is None else float(measure(run))
        if math.isnan(figure):
            raise UserError(f"the figure of target weight {weight:g} is NaN", hint="check the data and the measure")
        trials.append(Trial(weight, statistics, figure))
    ranked = sorted(trials, key=lambda t: t.figure if measure is None else -t.figure)
    return Selection(ranked[0], tuple(trials))


def _runner(program: Program, statistics: Statistics) -> Runner:
    return lambda inputs: run_with_statistics(program, inputs, lambda parts, _: statistics[parts.output.name])


def _logits(program: Program, output: str | None) -> str:
    names = [o.name for o in program.outputs]
    if output is None and len(names) == 1:
        return names[0]
    if output not in names:
        raise UserError(f"output={output!r} does not name the predictions", hint=f"outputs: {', '.join(names)}")
    return output


def _entropy(run: Runner, data: Sequence[Batch], output: str, class_axis: int) -> float:
    """Mean entropy of the predictions, in nats."""
    total, count = 0.0, 0
    for batch in data:
        logits = run(batch)[output]
        if not -logits.dim() <= class_axis < logits.dim() or logits.shape[class_axis] < 2:
            raise UserError(
                f"{output} of shape {tuple(logits.shape)} has no classes on axis {class_axis}",
                hint="name the output of the logits and its axis of classes, or give a measure",
            )
        logs = torch.log_softmax(logits.to(torch.float64), class_axis)
        entropies = -(logs.exp() * logs).sum(class_axis)
        total, count = total + float(entropies.sum()), count + entropies.numel()
    return total / count
