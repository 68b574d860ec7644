"""How quality is won back: which steps, and the settings of distillation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.recovery.defaults import RECOVER, RECOVER_ATTENTION, TRANSFER_LEARNING_RATE, TRANSFER_STEPS
from flowopt.recovery.settings import OptimizerName, RecoverySettings, Schedule

RIDGE: Final = "ridge"
MATCH: Final = "match"
TRANSFER: Final = "transfer"
DISTILL: Final = "distill"
_OF_NORMS: Final = (RIDGE, MATCH, DISTILL)
_OF_ATTENTION: Final = (TRANSFER, DISTILL)
_STEPS: Final = (RIDGE, MATCH, TRANSFER, DISTILL)
_NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What ``adapt`` does after norms were swapped, or attention was linearized.

    Attributes:
        steps: in order. Of swapped norms ``ridge`` (the linear layers behind them, in closed form) and ``match`` (each
            and its readers alone), of linear attention ``transfer`` (the maps of each alone), and of both ``distill``
            (the whole model); none: it stays as it was put in place. None: ``ridge, distill`` or ``transfer, distill``.
        settings: of distillation; outputs and features are filled in where they are empty.
        match_steps: optimizer steps for each norm.
        match_learning_rate: of them.
        transfer_steps: optimizer steps for all attentions, each of which learns alone.
        transfer_learning_rate: of the first of them.
        transfer_batches: batches that these steps take in turn, and that a quarter of judges; ``calibration`` if that
            is more.
        checkpoint: file that distillation saves its state in; None: nothing is saved.
        resume: go on from there.
    """

    steps: tuple[str, ...] | None = None
    settings: RecoverySettings = field(default_factory=RecoverySettings)
    match_steps: int = 100
    match_learning_rate: float = 1e-3
    transfer_steps: int = TRANSFER_STEPS
    transfer_learning_rate: float = TRANSFER_LEARNING_RATE
    transfer_batches: int = 64
    checkpoint: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        steps = self.steps if self.steps is not None else (DISTILL,)
        unknown = [step for step in steps if step not in _STEPS]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is no step of recovery", hint=nearest(unknown[0], _STEPS, otherwise="such as")
            )
        if len(set(steps)) != len(steps):
            raise UserError(f"a step of recovery stands twice in {', '.join(steps)}")
        for name in ("transfer_steps", "transfer_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is a number from 1", hint=f"such as {TRANSFER_STEPS}")
        if not self.transfer_learning_rate > 0:
            rate = self.transfer_learning_rate
            raise UserError(
                f"transfer_learning_rate={rate} is a number above 0", hint=f"such as {TRANSFER_LEARNING_RATE}"
            )
        if self.resume and self.checkpoint is None:
            raise UserError("there is nothing to resume from", hint="name the checkpoint: --checkpoint FILE --resume")
        if self.checkpoint is not None and DISTILL not in steps:
            raise UserError("only distillation saves checkpoints", hint=f"--recover {','.join((*steps, DISTILL))}")

    @property
    def ordered(self) -> tuple[str, ...]:
        """The steps of a plan that is for something."""
        assert self.steps is not None, "for_norms or for_attention fills them in"
        return self.steps

    def for_norms(self) -> "RecoveryPlan":
        """With the steps filled in that follow a swap of norms.

        Raises:
            UserError: a step that is none of them.
        """
        return self._filled(RECOVER, _OF_NORMS, "there is no linear attention whose maps it would train")

    def for_attention(self) -> "RecoveryPlan":
        """With the steps filled in that follow a linearization of attention.

        Raises:
            UserError: a step that is none of them.
        """
        return self._filled(RECOVER_ATTENTION, _OF_ATTENTION, "there is no swapped norm whose readers it would fit")

    def settings_for_report(self) -> Mapping[str, Any]:
        """What the result depends on; where state was saved is nobody's business."""
        told: dict[str, Any] = {"steps": self.ordered, "distillation": self.settings}
        for step, names in (
            (MATCH, ("match_steps", "match_learning_rate")),
            (TRANSFER, ("transfer_steps", "transfer_learning_rate", "transfer_batches")),
        ):
            told |= {name: getattr(self, name) for name in names if step in self.ordered}
        return told

    def _filled(self, default: str, known: tuple[str, ...], why: str) -> "RecoveryPlan":
        steps = tuple(default.split(",")) if self.steps is None else self.steps
        strange = next((step for step in steps if step not in known), None)
        if strange is not None:
            raise UserError(
                f"{strange!r} is no step of this recovery",
                why=why,
                hint=f"--recover {default}; known: {', '.join(known)}",
            )
        return replace(self, steps=steps)

    @staticmethod
    def of(
        text: str | None,
        *,
        steps: int,
        minutes: float | None,
        lr: float,
        optimizer: OptimizerName,
        loss: str,
        schedule: Schedule,
        settle: float,
        patience: int,
        feature_weight: float,
        lora: int,
        transfer_steps: int,
        transfer_lr: float,
        checkpoint: Path | None,
        resume: bool,
    ) -> "RecoveryPlan":
        """Out of the words of a command line; ``text`` is ``none`` or steps separated by commas, or None.

        Raises:
            UserError: a value that means nothing.
        """
        if minutes is not None and not minutes > 0:
            raise UserError(f"minutes={minutes} is a number above 0", hint="leave it out for no limit")
        names: tuple[str, ...] | None = None
        if text is not None:
            names = () if text.strip() == _NONE else tuple(part.strip() for part in text.split(","))
        settings = RecoverySettings(
            steps=steps,
            learning_rate=lr,
            optimizer=optimizer,
            loss=loss,
            schedule=schedule,
            settle=settle,
            patience=patience,
            feature_weight=feature_weight,
            lora_rank=lora,
            time_limit_seconds=None if minutes is None else 60 * minutes,
        )
        return RecoveryPlan(
            names,
            settings,
            transfer_steps=transfer_steps,
            transfer_learning_rate=transfer_lr,
            checkpoint=checkpoint,
            resume=resume,
        )
