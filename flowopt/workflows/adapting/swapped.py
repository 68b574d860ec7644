"""Replace the chosen norms, win back what that cost stage by stage, and freeze what was trained."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, fx

from flowopt.analysis.norm_fit import NormFit
from flowopt.errors import InternalError
from flowopt.ir.evaluate import Value, evaluate
from flowopt.passes.swap.swap_norm import SwapNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.distill import recover
from flowopt.recovery.match import match_layers
from flowopt.recovery.padding import real_tokens
from flowopt.recovery.recovered import Progress
from flowopt.recovery.ridge import refit_linears
from flowopt.recovery.trainable import Trainable
from flowopt.report.adaptation import Stage
from flowopt.report.passes import PassRecord
from flowopt.workflows.adapting.agreement import Metric, Outputs, measured_agreement
from flowopt.workflows.adapting.beginning import distillation
from flowopt.workflows.adapting.judged import RMS, Judged
from flowopt.workflows.adapting.leaves import leaf_of, trained_fits, uncalibrated
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
        for step in self.plan.steps:
            started = time.perf_counter()
            self.on_progress(f"recovery: {step}")
            notes: Sequence[str]
            if step == RIDGE:
                notes = self._ridge(student, batches)
            elif step == MATCH:
                notes = self._match(student, batches)
            else:
                assert step == DISTILL, step
                notes, losses = self._distill(student)
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

    def _distill(self, student: Trainable) -> tuple[Sequence[str], tuple[tuple[int, float], ...]]:
        settings = distillation(self.plan.settings, self.outputs, self._common(student), self.seed)
        found = recover(
            student,
            self.judged.program,
            self.data,
            settings,
            checkpoint=self.plan.checkpoint,
            resume=self.plan.resume,
            on_progress=lambda at: self.on_progress(_step(at)),
        )
        ended = {"steps": "all steps", "patience": "no improvement", "time": "the time limit"}[found.stopped]
        note = (
            f"{found.steps} steps, ended by {ended}; validation loss {found.start_loss:.3g}, the least is "
            f"{found.best_loss:.3g} at step {found.best_step}, which was kept"
        )
        return (note,), tuple((one.step, one.held_out) for one in found.history)

    def _measured(
        self,
        name: str,
        student: Trainable,
        started: float,
        notes: Sequence[str],
        errors: dict[str, dict[str, float]],
    ) -> Stage:
        seconds = time.perf_counter() - started
        self.on_progress(f"measuring: {name}")
        walks = _Walks(student, self.judged, self._common(student))
        found = measured_agreement(
            walks.student_outputs,
            walks.teacher_outputs,
            self.data.held_out(),
            outputs=self.outputs,
            padding=self.judged.padding,
            metric=self.metric,
        )
        for site, error in walks.errors().items():
            errors.setdefault(site, {})[name] = error
        self._original_metric = found.original_metric
        return Stage(name, found.agreement, found.metric, seconds, tuple(notes))

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


def _step(at: Progress) -> str:
    return f"distilling, step {at.step} of {at.steps}: loss {at.loss:.3g}, {at.seconds:.0f} s"


@final
class _Walks:
    """Both models on the same batches, and how far the norms' values are apart."""

    def __init__(self, student: Trainable, judged: Judged, names: tuple[str, ...]) -> None:
        self._student, self._judged, self._names = student, judged, names
        self._found: dict[str, Tensor] = {}
        self._sums: dict[str, tuple[float, float]] = {}

    def student_outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Of one batch; the norms' values are kept for the original's."""
        found: tuple[Outputs, dict[str, Tensor]] = self._student(inputs, observe=self._names)
        outputs, self._found = found
        return outputs

    def teacher_outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Of the same batch, which the student has seen."""
        program = self._judged.program
        real = None if self._judged.padding is None else real_tokens(inputs, self._judged.padding)

        def observe(node: fx.Node, value: Value) -> None:
            if node.name in self._found:
                self._add(node.name, self._found[node.name], value, real)

        values = evaluate(program.graph, program.read, program.bind((), inputs), observe=observe)
        return {o.name: v for o, v in zip(program.outputs, values, strict=True)}

    def errors(self) -> dict[str, float]:
        """Relative error of each norm's value over all batches, by site."""
        return {name: (error / square) ** 0.5 if square else 0.0 for name, (error, square) in self._sums.items()}

    def _add(self, name: str, found: Tensor, known: Tensor, real: Tensor | None) -> None:
        if real is not None and known.dim() > real.dim() and known.shape[: real.dim()] == real.shape:
            found, known = found[real], known[real]
        error, square = self._sums.get(name, (0.0, 0.0))
        off = torch.linalg.vector_norm((found - known).double()).item() ** 2
        self._sums[name] = error + off, square + torch.linalg.vector_norm(known.double()).item() ** 2
