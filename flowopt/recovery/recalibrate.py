"""Statistics of batch norms over other data than they were trained on: measured again, or mixed with their own.

re-estimation   mean and variance of what each norm reads, over all of the data
alpha-BN        (1 - a) source + a target, of the mean and of the variance; a is the target's weight
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from flowopt.analysis.batch_dependent_norms import batch_dependent_norm
from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.analysis.norm_parts import NormParts
from flowopt.errors import UserError
from flowopt.ir.evaluate import Value, evaluate
from flowopt.program.program import Program
from flowopt.recovery.channel_moments import ChannelMoments
from flowopt.recovery.with_statistics import batch_norms, run_with_statistics

Batch = Mapping[str, Tensor]
Statistics = dict[str, ChannelStatistics]


def reestimate(
    program: Program,
    batches: Iterable[Batch],
    *,
    target_weight: float = 1.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Statistics:
    """Statistics of what every eval-mode batch norm reads, over target data.

    While a batch goes through, each norm normalises by that batch's own statistics, so that the layers behind it see
    what they will see once it has new ones: one walk for each batch is enough. As in torch's training mode, a batch is
    normalised by its biased variance, and what is kept of it is the unbiased one.

    Args:
        program: never changed.
        batches: inputs by name; small batches give poor statistics, 32 images and more are usual.
        target_weight: share of the batch's statistics while it goes through, 0 to 1; below 1 the rest is the stored
            ones, as an alpha-BN of that weight has it but for the bias of the batch's variance.
        on_progress: gets one line per batch.

    Returns:
        Mean and unbiased variance over all batches, by the name of the norm's value; for ``alpha``, and for the pass
        ``recalibrate-batch-norm``.

    Raises:
        UserError: ``target_weight`` is outside; no batch; no batch norm; a single value for a channel; a NaN or an
            infinity in what a norm reads, with the norm and the batch.

    Source: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", section
    3; You et al., "Test-time batch statistics calibration for covariate shift", section 3.
    """
    require_share(target_weight)
    stored = _stored(program)
    gathered = {parts.output.name: ChannelMoments(parts.channels) for parts in batch_norms(program)}
    count = 0
    for count, batch in enumerate(batches, 1):
        on_progress(f"batch norms: batch {count}")

        def choose(parts: NormParts, x: Tensor, at: int = count) -> ChannelStatistics:
            name = parts.output.name
            rows = _rows(x, parts.axis, name, at - 1)
            _add(gathered[name], rows)
            own = ChannelMoments(parts.channels)
            _add(own, rows)
            return _mixed(stored[name], _biased(own), target_weight)

        run_with_statistics(program, batch, choose)
    _require_enough(gathered, count)
    return {name: _unbiased(moments) for name, moments in gathered.items()}


def statistics_at_test_time(program: Program, batches: Iterable[Batch]) -> Statistics:
    """Statistics of what every batch norm reads that goes by its batch at test time too, over target data.

    The model runs as it is. For the pass ``freeze-test-time-norm``.

    Returns:
        Mean and variance over all batches, by the name of the norm's value. The variance is the one that the norm would
        take of all the data in one batch: biased for norms without statistics of their own, as torch divides by that
        one; unbiased for those that mix the batch's with stored ones.

    Raises:
        UserError: as ``reestimate``.
    """
    norms = [norm for node in program.graph.nodes if (norm := batch_dependent_norm(node, program.constant)) is not None]
    if not norms:
        raise UserError(
            "the model has no batch norm that goes by its batch at test time",
            hint="reestimate or alpha-bn, for norms with statistics of their own",
        )
    gathered = {norm.output.name: ChannelMoments(norm.channels) for norm in norms}
    count = 0
    for count, batch in enumerate(batches, 1):

        def observe(node: object, value: Value, at: int = count) -> None:
            for norm in norms:
                if norm.source is node:
                    _add(gathered[norm.output.name], _rows(value, norm.axis, norm.output.name, at - 1))

        evaluate(program.graph, program.read, program.bind((), batch), raised=program.raised, observe=observe)
    _require_enough(gathered, count)
    return {
        norm.output.name: (_biased if norm.stored is None else _unbiased)(gathered[norm.output.name]) for norm in norms
    }


def alpha(program: Program, statistics: Mapping[str, ChannelStatistics], target_weight: float) -> Statistics:
    """``(1 - target_weight)`` of the stored statistics and ``target_weight`` of the given ones, for every batch norm.

    Papers disagree on which side alpha stands; this is the target's.

    Args:
        program: has the stored ones; never changed.
        statistics: of the target data, from ``reestimate``.
        target_weight: 0 to 1.

    Raises:
        UserError: ``target_weight`` is outside; a norm has no statistics.

    Source: You et al., "Test-time batch statistics calibration for covariate shift", section 3.
    """
    require_share(target_weight)
    stored = _stored(program)
    missing = sorted(stored.keys() - statistics.keys())
    if missing:
        raise UserError(f"there are no statistics of {', '.join(missing)}", hint="take them from reestimate")
    return {name: _mixed(own, statistics[name], target_weight) for name, own in stored.items()}


def require_share(target_weight: float) -> None:
    """Raise UserError unless a weight of the target lies between 0 and 1."""
    if not 0.0 <= target_weight <= 1.0:
        raise UserError(f"target_weight={target_weight} is a share between 0 and 1, such as 0.1")


def _stored(program: Program) -> Statistics:
    found: Statistics = {}
    for parts in batch_norms(program):
        assert parts.statistics is not None
        mean, variance = (program.constant(node).flatten().cpu() for node in parts.statistics)
        found[parts.output.name] = ChannelStatistics(mean, variance)
    return found


def _mixed(source: ChannelStatistics, target: ChannelStatistics, weight: float) -> ChannelStatistics:
    pairs = zip(source, target, strict=True)
    return ChannelStatistics(*((1.0 - weight) * own + weight * new for own, new in pairs))


def _rows(x: Tensor, axis: int, name: str, batch: int) -> Tensor:
    """(values, channels), float64."""
    rows = x.movedim(axis, -1).flatten(0, -2).to(torch.float64)
    if not bool(torch.isfinite(rows).all()):
        raise UserError(
            f"batch {batch} gives the norm {name} a NaN or an infinity",
            why="no statistics can be measured with it",
            hint="check that batch, and the model's outputs for it",
        )
    return rows


def _add(moments: ChannelMoments, rows: Tensor) -> None:
    moments.add(rows, rows, torch.ones(rows.shape[0], 1, dtype=torch.bool, device=rows.device))


def _biased(moments: ChannelMoments) -> ChannelStatistics:
    """The mean, and the variance of the values themselves."""
    return ChannelStatistics(moments.mean_x, moments.variance_x)


def _unbiased(moments: ChannelMoments) -> ChannelStatistics:
    """The mean, and the variance of what the values are a sample of."""
    return ChannelStatistics(moments.mean_x, moments.spread_x / (moments.count - 1))


def _require_enough(gathered: Mapping[str, ChannelMoments], count: int) -> None:
    if not count:
        raise UserError("there is no batch of target data", hint="give data: at least one batch of the model's inputs")
    single = [name for name, moments in gathered.items() if float(moments.count.min()) < 2]
    if single:
        raise UserError(
            f"{single[0]} reads a single value for each channel in all of the data, and one has no variance",
            hint="give more than one sample",
        )
