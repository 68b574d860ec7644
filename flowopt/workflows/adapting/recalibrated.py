"""Adaptation of batch norms to shifted data: new statistics, which fold away as the old ones would have."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

from torch import Tensor

from flowopt.errors import InternalError, UserError
from flowopt.passes.swap.freeze_test_time_norm import FreezeTestTimeNorm
from flowopt.passes.swap.recalibrate_batch_norm import RecalibrateBatchNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.recalibrate import alpha, reestimate, statistics_at_test_time
from flowopt.recovery.select_statistics import Runner, Selection, selected
from flowopt.report.adaptation import Adaptation, Stage
from flowopt.workflows.adapting.agreement import Metric, Outputs, measured_agreement
from flowopt.workflows.pipelines import Pipeline

RECALIBRATIONS: Final = ("reestimate", "alpha-bn", "select", "freeze")


@final
@dataclass(frozen=True, slots=True)
class Recalibrating:
    """One recalibration; attributes as the arguments of ``flowopt.adapt``.

    Attributes:
        way: ``reestimate``, ``alpha-bn``, ``select``, or ``freeze`` for norms that go by their batch at test time too.
        calibration: number of batches that are measured.
    """

    program: Program
    data: Data
    way: str
    target_weight: float
    calibration: int
    outputs: Collection[str]
    metric: Metric | None
    seed: int
    on_progress: Callable[[str], None]

    def run(self, *, dry_run: bool) -> tuple[Program, Adaptation]:
        """Measure, choose, and store the new statistics; a dry run measures what there would be to choose from.

        Raises:
            UserError: no batch norm, or data that does not fit.
        """
        prepared = Pipeline(["canonicalize-aten"]).run(self.program, verify="each", seed=self.seed).program
        started = time.perf_counter()
        rewrite, tried, note = self._rewrite(prepared)
        said = Adaptation(
            method=f"{rewrite.pass_name()}{'' if self.way == 'freeze' else f' by {self.way}'}",
            data="",
            held_out=0,
            norms=(),
            settings={"target_weight": self.target_weight, "calibration": self.calibration, "seed": self.seed},
            tried=tried,
            notes=(note,),
        )
        if dry_run:
            return prepared, said
        run = run_passes(prepared, [rewrite])
        (record,) = run.records
        if len(record.applied) != len(rewrite.statistics):
            first = next(iter(record.refused), None)
            raise InternalError(f"{len(record.applied)} of {len(rewrite.statistics)} batch norms changed: {first}")
        stage, original = self._measured(run.program, prepared, time.perf_counter() - started)
        return run.program, replace(said, stages=(stage,), original_metric=original)

    def _rewrite(self, program: Program) -> tuple[RecalibrateBatchNorm | FreezeTestTimeNorm, dict[str, float], str]:
        """The pass with the new statistics, what else was tried, and what was done in words."""
        batches = [batch.inputs for batch in self.data.calibration(self.calibration)]
        if self.way == "freeze":
            frozen = statistics_at_test_time(program, batches)
            note = f"{len(frozen)} norms that went by their batch have the data's statistics for good"
            return FreezeTestTimeNorm(statistics=frozen), {}, note
        if self.way == "select":
            selection = self._selected(program, batches)
            figures = {trial.name: trial.figure for trial in selection.trials}
            by = "the metric on calibration batches" if self.metric is not None else "the mean entropy of predictions"
            note = f"{selection.chosen.name}, chosen by {by}"
            return RecalibrateBatchNorm(statistics=selection.chosen.statistics), figures, note
        weight = 1.0 if self.way == "reestimate" else self.target_weight
        found = reestimate(program, batches, target_weight=weight, on_progress=self.on_progress)
        mixed = alpha(program, found, weight)
        note = f"{len(mixed)} batch norms; the data's statistics have the weight {weight:g}"
        return RecalibrateBatchNorm(statistics=mixed), {}, note

    def _selected(self, program: Program, batches: list[Mapping[str, Tensor]]) -> Selection:
        if self.metric is None:
            (output, *others) = self.outputs
            if others:
                raise UserError(
                    f"predictions of which of the outputs {output}, {', '.join(others)}?",
                    hint=f"--output {output}, or a metric",
                )
            return selected(program, batches, output=output, class_axis=-1, on_progress=self.on_progress)

        def measure(run: Runner) -> float:
            found = measured_agreement(
                run,
                lambda given: _outputs(program, given),
                self.data.calibration(self.calibration),
                outputs=(),
                metric=self.metric,
            ).metric
            assert found is not None, "there is a metric"
            return found

        return selected(program, batches, measure, on_progress=self.on_progress)

    def _measured(self, candidate: Program, original: Program, seconds: float) -> tuple[Stage, float | None]:
        """The one stage, and the original's metric."""
        self.on_progress(f"measuring: {self.way}")
        found = measured_agreement(
            lambda given: _outputs(candidate, given),
            lambda given: _outputs(original, given),
            self.data.held_out(),
            outputs=self.outputs,
            metric=self.metric,
        )
        return Stage(self.way, found.agreement, found.metric, seconds), found.original_metric


def _outputs(program: Program, given: Mapping[str, Tensor]) -> Outputs:
    return program.run_named(program.bind((), given))
