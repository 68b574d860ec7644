"""Replace the chosen norms, win back what that cost stage by stage, and freeze what was trained."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from flowopt.analysis.norm_fit import NormFit
from flowopt.errors import InternalError
from flowopt.passes.swap.swap_norm import SwapNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.match import match_layers
from flowopt.recovery.ridge import refit_linears
from flowopt.recovery.trainable import Trainable
from flowopt.report.adaptation import Stage
from flowopt.report.passes import PassRecord
from flowopt.workflows.adapting.agreement import Metric
from flowopt.workflows.adapting.distilled import distilled
from flowopt.workflows.adapting.judged import RMS, Judged
from flowopt.workflows.adapting.leaves import leaf_of, trained_fits, uncalibrated
from flowopt.workflows.adapting.measured_stage import measured_stage
from flowopt.workflows.adapting.recovery_plan import DISTILL, MATCH, RIDGE, RecoveryPlan


@dataclass(frozen=True, slots=True)
class Swapped:
    """An adapted model.

    Attributes:
        program: frozen: its swapped norms are ATen operators.
        record: of the pass that wrote them.
        stages: in order.
        errors: of norms' values on held-out data, by site and stage.
        losses: (step, validation loss) of distillation.
    """

    program: Program
    record: PassRecord
    stages: tuple[Stage, ...]
    errors: Mapping[str, Mapping[str, float]]
    losses: tuple[tuple[int, float], ...] = ()
    original_metric: float | None = None


@final
@dataclass(slots=True)
class Swapping:
    """One swap of one judged model.

    Attributes:
        judged: the model, its norms, and which of them go.
        to: what takes their places.
        data: to recover and to measure with.
        plan: of the recovery.
        outputs: that count.
        metric: the user's.
        calibration: number of batches that closed forms are fitted to.
        seed: of orders.
        on_progress: gets one line per step.
    """

    judged: Judged
    to: str
    data: Data
    plan: RecoveryPlan
    outputs: Collection[str]
    metric: Metric | None
    calibration: int
    seed: int
    on_progress: Callable[[str], None]
    _original_metric: float | None = field(default=None, init=False)

    def run(self) -> Swapped:
        """Swap, recover, freeze."""
        stages, errors = [self._uncalibrated()], dict[str, dict[str, float]]()
        student = self._student(self.judged.fits)
        losses: tuple[tuple[int, float], ...] = ()
        stages.append(self._measured("swapped", student, time.perf_counter(), (), errors))
        batches = [batch.inputs for batch in self.data.calibration(self.calibration)]
        for step in self.plan.ordered:
            started = time.perf_counter()
            self.on_progress(f"recovery: {step}")
            notes: Sequence[str]
            if step == RIDGE:
                notes = self._ridge(student, batches)
            elif step == MATCH:
                notes = self._match(student, batches)
            else:
                assert step == DISTILL, step
                done = distilled(
                    student,
                    self.judged.program,
                    self.data,
                    self.plan,
                    outputs=self.outputs,
                    features=self._common(student),
                    seed=self.seed,
                    on_progress=self.on_progress,
                )
                notes, losses = (done.note,), done.losses
            stages.append(self._measured(step, student, started, notes, errors))
        program, record = self._frozen(student)
        return Swapped(program, record, tuple(stages), errors, losses, self._original_metric)

    def _student(self, fits: Mapping[str, NormFit]) -> Trainable:
        """The model with a module in the place of each chosen norm; an RMS norm is an operator of its own."""
        base, padding = self.judged.program, self.judged.padding
        if self.to == RMS:
            return Trainable(self._with_pass(base, fits)[0], padding=padding).eval()
        leaves = {
            site.name: (site.source, leaf_of(self.to, site, fits[site.name], base.node(site.name).meta["val"].dtype))
            for site in self.judged.chosen
        }
        return Trainable(base, leaves, padding=padding).eval()

    def _uncalibrated(self) -> Stage:
        """What the same swap gives with the gains and shifts as they are and running statistics of 1."""
        started = time.perf_counter()
        plain = uncalibrated(self.judged.program, self.judged.fits)
        return self._measured("uncalibrated", self._student(plain), started, (), {})

    def _ridge(self, student: Trainable, batches: Sequence[Mapping[str, Tensor]]) -> Sequence[str]:
        found = refit_linears(student, self.judged.program, batches, on_progress=self.on_progress)
        kept = [one for one in found if one.is_kept]
        return (f"{len(kept)} of {len(found)} linear layers behind swapped norms refitted",)

    def _match(self, student: Trainable, batches: Sequence[Mapping[str, Tensor]]) -> Sequence[str]:
        found = match_layers(
            student,
            self.judged.program,
            batches,
            steps=self.plan.match_steps,
            lr=self.plan.match_learning_rate,
            seed=self.seed,
            on_progress=self.on_progress,
        )
        kept = [one for one in found if one.is_kept]
        return (f"{len(kept)} of {len(found)} norms matched to the original's",)

    def _measured(
        self,
        name: str,
        student: Trainable,
        started: float,
        notes: Sequence[str],
        errors: dict[str, dict[str, float]],
    ) -> Stage:
        found = measured_stage(
            name,
            student,
            self.judged.program,
            self.data.held_out,
            sites=[site.name for site in self.judged.sites],
            outputs=self.outputs,
            metric=self.metric,
            seconds=time.perf_counter() - started,
            notes=notes,
            on_progress=self.on_progress,
        )
        for site, error in found.errors.items():
            errors.setdefault(site, {})[name] = error
        self._original_metric = found.original_metric
        return found.stage

    def _common(self, student: Trainable) -> tuple[str, ...]:
        names = {node.name for node in student.program.graph.nodes}
        return tuple(site.name for site in self.judged.sites if site.name in names)

    def _frozen(self, student: Trainable) -> tuple[Program, PassRecord]:
        """What was trained, as operators."""
        if self.to == RMS:
            return student.trained_program(), self._with_pass(self.judged.program, self.judged.fits)[1]
        return self._with_pass(student.trained_program(), trained_fits(self.judged.fits, dict(student.leaves.items())))

    def _with_pass(self, program: Program, fits: Mapping[str, NormFit]) -> tuple[Program, PassRecord]:
        """The program with the chosen norms replaced by operators, and the pass's record."""
        only = "+".join(site.name for site in self.judged.chosen)
        run = run_passes(program, [SwapNorm(to=self.to, fits=fits, force=True, only=only)])
        (record,) = run.records
        if len(record.applied) != len(self.judged.chosen):
            first = next((r for r in record.refused if r.code != "not-chosen"), None)
            raise InternalError(f"{len(record.applied)} of {len(self.judged.chosen)} norms were replaced: {first}")
        return run.program, record
