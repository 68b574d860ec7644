"""Linearize the chosen attentions, win back what that cost stage by stage, and freeze what was trained."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import torch
from torch import nn

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.errors import InternalError
from flowopt.ops.attention import InPlaceOfSoftmax, MeanAttention
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.trainable import Trainable
from flowopt.recovery.transfer import transfer_attention
from flowopt.report.adaptation import Stage
from flowopt.report.passes import PassRecord
from flowopt.workflows.adapting.agreement import Metric
from flowopt.workflows.adapting.distilled import distilled
from flowopt.workflows.adapting.frozen_attention import frozen_attention
from flowopt.workflows.adapting.judged_attention import JudgedAttention
from flowopt.workflows.adapting.measured_stage import measured_stage
from flowopt.workflows.adapting.recovery_plan import DISTILL, TRANSFER, RecoveryPlan
from flowopt.workflows.adapting.short_sequences import parallel_where_short
from flowopt.workflows.optimize import Form

MEAN_OF_VALUES: Final = "mean-of-values"
ZERO_SHOT: Final = "zero-shot"
# Of the frozen model from the trained one; in 16 bits an order of sums is worth that much.
_SAME: Final = 0.05


@dataclass(frozen=True, slots=True)
class Linearized:
    """An adapted model.

    Attributes:
        program: frozen: its linear attentions are ATen operators.
        record: of the pass that wrote them.
        stages: in order; the first averages the values instead, and is a yardstick.
        errors: of attentions' outputs on held-out data, by site and stage.
        losses: (step, validation loss) of distillation.
        original_metric: the user's metric of the original.
    """

    program: Program
    record: PassRecord
    stages: tuple[Stage, ...]
    errors: Mapping[str, Mapping[str, float]]
    losses: tuple[tuple[int, float], ...] = ()
    original_metric: float | None = None


@final
@dataclass(slots=True)
class Linearizing:
    """One linearization of one judged model.

    Attributes:
        judged: the model, its attentions, and which of them go.
        to: what takes their places.
        data: to recover and to measure with.
        plan: of the recovery.
        outputs: that count.
        metric: the user's.
        calibration: number of batches that transfer looks at, at least.
        seed: of orders.
        on_progress: gets one line per step.
        form: that the adapted model is lowered in.
    """

    judged: JudgedAttention
    to: str
    data: Data
    plan: RecoveryPlan
    outputs: Collection[str]
    metric: Metric | None
    calibration: int
    seed: int
    on_progress: Callable[[str], None]
    form: Form = "parallel"
    _original_metric: float | None = field(default=None, init=False)

    def run(self) -> Linearized:
        """Linearize, recover, freeze."""
        errors = dict[str, dict[str, float]]()
        started = time.perf_counter()
        means = {site.name: InPlaceOfSoftmax(MeanAttention(site.shape)) for site in self.judged.chosen}
        stages = [self._measured(MEAN_OF_VALUES, self._student(means), started, (), errors)]
        student = self._student(self.judged.leaves)
        with parallel_where_short(self.judged.program, self.judged.chosen, dict(student.leaves.items())):
            losses = self._recovered(student, stages, errors)
        program, record = self._frozen(student)
        return Linearized(program, record, tuple(stages), errors, losses, self._original_metric)

    def _recovered(
        self, student: Trainable, stages: list[Stage], errors: dict[str, dict[str, float]]
    ) -> tuple[tuple[int, float], ...]:
        """Every step of recovery; each becomes a stage. The losses of distillation."""
        started = time.perf_counter()
        stages.append(self._measured(ZERO_SHOT, student, started, (), errors))
        losses: tuple[tuple[int, float], ...] = ()
        for step in self.plan.ordered:
            started = time.perf_counter()
            self.on_progress(f"recovery: {step}")
            if step == TRANSFER:
                note = self._transfer(student)
            else:
                assert step == DISTILL, step
                done = distilled(
                    student,
                    self.judged.program,
                    self.data,
                    self.plan,
                    outputs=self.outputs,
                    features=[site.name for site in self.judged.chosen],
                    seed=self.seed,
                    on_progress=self.on_progress,
                )
                note, losses = done.note, done.losses
            stages.append(self._measured(step, student, started, (note,), errors))
        return losses

    def _student(self, leaves: Mapping[str, nn.Module]) -> Trainable:
        """The model with a module in the place of each chosen attention."""
        placed = {site.name: (read_by(site), leaves[site.name]) for site in self.judged.chosen}
        return Trainable(self.judged.program, placed, padding=self.judged.padding).eval()

    def _transfer(self, student: Trainable) -> str:
        count = max(self.calibration, self.plan.transfer_batches)
        found = transfer_attention(
            student,
            self.judged.program,
            [batch.inputs for batch in self.data.calibration(count)],
            steps=self.plan.transfer_steps,
            lr=self.plan.transfer_learning_rate,
            seed=self.seed,
            on_progress=self.on_progress,
        )
        kept = [one for one in found if one.is_kept]
        if not any(p.requires_grad for name in student.attentions for p in student.leaves[name].parameters()):
            return f"{self.to} has no map to train: distillation trains what it reads"
        return f"{len(kept)} of {len(found)} attentions came nearer to softmax on the original's own inputs"

    def _measured(
        self, name: str, student: Trainable, started: float, notes: Sequence[str], errors: dict[str, dict[str, float]]
    ) -> Stage:
        sites = [site.name for site in self.judged.sites]
        found = measured_stage(
            name,
            student,
            self.judged.program,
            self.data.held_out,
            sites=sites,
            attentions=sites,
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

    def _frozen(self, student: Trainable) -> tuple[Program, PassRecord]:
        """What was trained, as operators."""
        self.on_progress("freezing")
        program, record = frozen_attention(
            student.trained_program(), dict(student.leaves.items()), self.judged.chosen, self.to, self.form
        )
        self._require_same(student, program)
        return program, record

    def _require_same(self, student: Trainable, frozen: Program) -> None:
        """Refuse a frozen model that computes something else than what was measured."""
        for batch in self.data.held_out():
            with torch.no_grad():
                wanted, _ = student(batch.inputs)
            found = frozen.run_named(batch.inputs)
            for name in self.outputs:
                # Where a sample is nothing but padding, both may give no numbers.
                both = found[name].isnan() & wanted[name].isnan()
                off = (found[name] - wanted[name]).double().masked_fill(both, 0.0).norm()
                size = wanted[name].double().masked_fill(both, 0.0).norm()
                # The same operators, in another order at most; a stand-in that was written wrong is off by a share.
                if not off <= _SAME * size:
                    raise InternalError(f"{name} of the frozen model is {off / size:.2g} from that of the trained one")
            return


def read_by(site: AttentionSite) -> tuple[str, ...]:
    """Names of the values that a stand-in reads: a mask that is only causal is none of them."""
    mask = (site.mask,) if site.has_padding and site.mask is not None else ()
    return site.query, site.key, site.value, *mask
