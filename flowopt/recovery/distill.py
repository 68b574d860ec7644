"""Recovery by distillation: a student with swapped norms is trained to compute what the original does.

The state that is best on held-out data is what comes out, and the state before any training counts as one. Held-out
data are evaluated in eval mode with every norm swapped, whatever is in place at that step: the model that will be kept.

Source: Hinton et al., arXiv:1503.02531, for the loss on logits; Romero et al., arXiv:1412.6550, for that on features.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.program.program import Program
from flowopt.recovery.batches import endless
from flowopt.recovery.beginning import require_beginning
from flowopt.recovery.checkpoint import read_checkpoint, understood, write_checkpoint
from flowopt.recovery.convergence import require_convergence, require_finite
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.data.data import Data
from flowopt.recovery.distributed import (
    averaged,
    is_true_anywhere,
    mean_over_ranks,
    process_group,
    rank,
    world_size,
)
from flowopt.recovery.identity import identity_of, require_same
from flowopt.recovery.lora import low_rank
from flowopt.recovery.objective import Objective
from flowopt.recovery.optimizers import clip_gradients, learning_rate, optimizer_of, step_of
from flowopt.recovery.original_run import require_original_runs
from flowopt.recovery.recovered import Progress, Recovered, Stopped
from flowopt.recovery.run_state import Evaluation, RunState, checkpoint_of, restore, snapshot
from flowopt.recovery.schedule import SwapSchedule
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.trainable import Trainable, device_of, trained_parameters

__all__ = ["Progress", "Recovered", "recover"]


def _silent(progress: Progress) -> None:
    del progress


def recover(
    student: Trainable,
    teacher: Program,
    data: Data,
    settings: RecoverySettings,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = _silent,
) -> Recovered:
    """Train a student towards its teacher, in place; it is left in eval mode with its best state.

    Under ``torchrun`` every process trains on its share of each batch; one of them writes. With one thread on a CPU, a
    run that was killed and resumed gives the numbers of one that was not, bit for bit.

    Args:
        student: with its leaves, each the affine map that calibration found.
        teacher: the original program, on the student's device.
        data: batches to train on, and others to judge by.
        settings: what is done.
        checkpoint: file that is replaced after every evaluation.
        resume: go on from ``checkpoint``; from the beginning where there is none yet.
        on_progress: called after every step, in the first process.

    Raises:
        Diverged: the loss is not finite, or stays many times above that of the start; the student has its best state.
        UserError: data, settings or a checkpoint that do not fit; a checkpoint that would be overwritten.
        CannotWrite, MalformedModel, MissingDependency: of the checkpoint, and of an optimizer.
    """
    require_beginning(settings, checkpoint, resume=resume)
    device = device_of(student)
    devices = [device] if device.type == "cuda" else []
    with process_group(device), torch.random.fork_rng(devices), low_rank(student, settings):
        run = _Run(student, teacher, data, settings, checkpoint, on_progress)
        stopped = run.trained()
    state = run.state
    return Recovered(
        steps=state.step,
        stopped=stopped,
        start_loss=state.history[0].held_out,
        best_loss=state.best_loss,
        best_step=state.best_step,
        history=tuple(state.history),
        seconds=state.seconds,
    )


@final
class _Run:
    """One process's part of a recovery."""

    def __init__(
        self,
        student: Trainable,
        teacher: Program,
        data: Data,
        settings: RecoverySettings,
        checkpoint: Path | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        if not trained_parameters(student):
            raise UserError("nothing of the model is trained", hint="freeze fewer tensors, or swap a norm")
        self.student, self.data, self.settings = student, data, settings
        self._teacher, self._on_progress = teacher, on_progress
        self._of_attention = bool(student.attentions)
        self._schedule = SwapSchedule(student, settings)
        self._objective = Objective(student, teacher, settings)
        self._optimizer = optimizer_of(student, settings)
        self._checkpoint = checkpoint
        self._identity: dict[str, Any] = {}
        self._began = time.monotonic()
        self.state = RunState()
        reads_all = self._reads_all()
        torch.manual_seed(settings.seed)
        if checkpoint is not None:
            self._identity = identity_of(student, teacher, data, settings)
        if checkpoint is not None and checkpoint.exists():
            found = read_checkpoint(checkpoint)
            with understood(checkpoint):
                require_same(checkpoint, found.facts["identity"], self._identity)
                self.state = restore(found, student, self._optimizer)
        self._before = self.state.seconds
        self._shared_objective: nn.Module = averaged(self._objective, reads_all=reads_all)

    def trained(self) -> Stopped:
        """Train to the end."""
        try:
            if not self.state.history:
                self._evaluate()
            stopped = self._end()
            batches = endless(self.data, self.state.epoch, self.state.taken)
            while stopped is None:
                self.state.epoch, self.state.taken, batch = next(batches)
                self._step(batch)
                stopped = self._end()
        finally:
            self._release()
            self._schedule.apply_all()
            if self.state.best:
                self.student.load_state_dict(self.state.best)
        return stopped

    def _reads_all(self) -> bool:
        """Whether every step gives every trained tensor a gradient: asked only where processes wait for each other."""
        # A norm that is not yet in place has none.
        if world_size() == 1 or self.settings.schedule == "one-at-a-time":
            return False
        self._schedule.apply_all()
        first = next(self.data.validation(), None)
        return first is not None and self._objective.reads_all(first.inputs, first.extra)

    def _step(self, batch: Batch) -> None:
        state, settings = self.state, self.settings
        self._schedule.apply(state.step)
        rate = learning_rate(settings, state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        where = f"batch {state.taken - 1} of the training data, epoch {state.epoch}"
        loss = self._loss(self._shared_objective, batch, where)
        value = float(mean_over_ranks(loss))
        if self._schedule.is_complete(state.step):
            noise = self._objective.noise
            require_convergence(state, settings, value, noise, of_attention=self._of_attention)
        self._require_finite(value, f"the loss at step {state.step + 1}")
        loss.backward()
        norm = clip_gradients(trained_parameters(self.student), settings.clip)
        self._require_finite(norm, f"the norm of the gradients at step {state.step + 1}")
        step_of(self._optimizer)
        state.step += 1
        state.losses.append(value)
        state.seconds = self._before + time.monotonic() - self._began
        swapped, is_due = len(self.student.active), state.step % settings.evaluation_interval == 0
        held_out = self._evaluate() if is_due or state.step == settings.steps else None
        if rank() == 0:
            self._on_progress(Progress(state.step, settings.steps, value, rate, swapped, state.seconds, held_out))

    def _loss(self, objective: nn.Module, batch: Batch, where: str) -> Tensor:
        """Of one batch; where it is none because of the original, that is said instead."""
        try:
            loss: Tensor = objective(batch.inputs, batch.extra)
        except RUN_ERRORS:
            self._require_original_runs(batch, where)
            raise
        if not bool(loss.detach().isfinite()):
            self._require_original_runs(batch, where)
        return loss

    def _require_original_runs(self, batch: Batch, where: str) -> None:
        device = device_of(self.student)
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        require_original_runs(self._teacher, inputs, self.settings.outputs, where=where)

    def _require_finite(self, value: float, what: str) -> None:
        require_finite(self.state, self.settings, value, what, of_attention=self._of_attention)

    def _release(self) -> None:
        """Let go of what averages gradients while the processes are still joined.

        It holds the last reference to their group otherwise; freed by the interpreter, it waits for a thread of the
        group that waits for the interpreter. Modules stand in cycles, which only the collector finds.
        """
        self._shared_objective = self._objective
        if world_size() > 1:
            gc.collect()

    def _evaluate(self) -> float:
        """Judge the student on held-out data, keep it where it is the best so far, and write the checkpoint."""
        state = self.state
        self._schedule.apply_all()
        total, count = 0.0, 0
        with torch.no_grad():
            for at, batch in enumerate(self.data.validation()):
                one = self._loss(self._objective, batch, f"batch {at} of the data to choose the best state by")
                total += float(mean_over_ranks(one)) * batch.samples
                count += batch.samples
        if count == 0:
            raise UserError("there are no held-out data to judge by", hint="hold a part of the data out")
        loss = total / count
        self._require_finite(loss, f"the loss on held-out data after {state.step} steps")
        training = sum(state.losses) / len(state.losses) if state.losses else None
        is_best = not state.history or loss < state.best_loss
        state.history.append(Evaluation(state.step, training, loss))
        state.losses.clear()
        # Until the last norm is in place, what is trained is not yet the model that is judged.
        state.stale = state.stale + 1 if not is_best and self._schedule.is_complete(state.step) else 0
        if is_best:
            state.best_step, state.best = state.step, snapshot(self.student)
        state.seconds = self._before + time.monotonic() - self._began
        if self._checkpoint is not None and rank() == 0:
            write_checkpoint(self._checkpoint, checkpoint_of(self.student, self._optimizer, state, self._identity))
        return loss

    def _end(self) -> Stopped | None:
        """Why to end now; None to go on."""
        state, settings = self.state, self.settings
        if state.step >= settings.steps:
            return "steps"
        if 0 < settings.patience <= state.stale:
            return "patience"
        limit = settings.time_limit_seconds
        if limit is None or state.step == 0:
            return None
        is_late = is_true_anywhere(state.seconds >= limit, device_of(self.student))
        if not is_late:
            return None
        if state.history[-1].step != state.step:
            self._evaluate()
        return "time"
