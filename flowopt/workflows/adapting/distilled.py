"""The last step of recovery: the whole model is distilled, as a plan says."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.distill import recover
from flowopt.recovery.recovered import Progress
from flowopt.recovery.trainable import Trainable
from flowopt.workflows.adapting.beginning import distillation
from flowopt.workflows.adapting.recovery_plan import RecoveryPlan


@dataclass(frozen=True, slots=True)
class Distilled:
    """What distillation did: in words, and (step, validation loss)."""

    note: str
    losses: tuple[tuple[int, float], ...]


def distilled(
    student: Trainable,
    original: Program,
    data: Data,
    plan: RecoveryPlan,
    *,
    outputs: Collection[str],
    features: Collection[str],
    seed: int,
    on_progress: Callable[[str], None],
) -> Distilled:
    """Train the student, in place, to compute what the original does.

    Args:
        student: changed.
        original: of the same nodes.
        data: to train on, and to choose the best state by.
        plan: settings and checkpoint.
        outputs: that count, where the settings name none.
        features: nodes whose values are compared too, where the settings name none.
        seed: of the adaptation.
        on_progress: gets one line per step.
    """
    settings = distillation(plan.settings, outputs, features, seed)
    found = recover(
        student,
        original,
        data,
        settings,
        checkpoint=plan.checkpoint,
        resume=plan.resume,
        on_progress=lambda at: on_progress(_step(at)),
    )
    ended = {"steps": "all steps", "patience": "no improvement", "time": "the time limit"}[found.stopped]
    note = (
        f"{found.steps} steps, ended by {ended}; validation loss {found.start_loss:.3g}, the least is "
        f"{found.best_loss:.3g} at step {found.best_step}, which was kept"
    )
    if settings.lora_rank:
        note += f"; as matrices of rank {settings.lora_rank}, added to the weights"
    return Distilled(note, tuple((one.step, one.held_out) for one in found.history))


def _step(at: Progress) -> str:
    return f"distilling, step {at.step} of {at.steps}: loss {at.loss:.3g}, {at.seconds:.0f} s"
