"""How quality is won back: which steps, and the settings of distillation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.recovery.defaults import RECOVER
from flowopt.recovery.settings import OptimizerName, RecoverySettings, Schedule

RIDGE: Final = "ridge"
MATCH: Final = "match"
DISTILL: Final = "distill"
_STEPS: Final = (RIDGE, MATCH, DISTILL)
_NONE: Final = "none"
_RECOVER: Final = tuple(RECOVER.split(","))


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What ``adapt`` does after a swap.

    Attributes:
        steps: of ``ridge`` (linear layers behind swapped norms, in closed form), ``match`` (each norm and its readers
            alone) and ``distill`` (the whole model), in order; none: the swap stays as calibrated.
        settings: of distillation; outputs and features are filled in where they are empty.
        match_steps: optimizer steps for each norm.
        match_learning_rate: of them.
        checkpoint: file that distillation saves its state in; None: nothing is saved.
        resume: go on from there.
    """

    steps: tuple[str, ...] = _RECOVER
    settings: RecoverySettings = field(default_factory=RecoverySettings)
    match_steps: int = 100
    match_learning_rate: float = 1e-3
    checkpoint: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        unknown = [step for step in self.steps if step not in _STEPS]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is no step of recovery", hint=nearest(unknown[0], _STEPS, otherwise="such as")
            )
        if len(set(self.steps)) != len(self.steps):
            raise UserError(f"a step of recovery stands twice in {', '.join(self.steps)}")
        if self.resume and self.checkpoint is None:
            raise UserError("there is nothing to resume from", hint="name the checkpoint: --checkpoint FILE --resume")
        if self.checkpoint is not None and DISTILL not in self.steps:
            raise UserError("only distillation saves checkpoints", hint=f"--recover {','.join((*self.steps, DISTILL))}")

    def settings_for_report(self) -> Mapping[str, Any]:
        """What the result depends on; where state was saved is nobody's business."""
        told = {"steps": self.steps, "distillation": self.settings}
        return told | {"match_steps": self.match_steps, "match_learning_rate": self.match_learning_rate}

    @staticmethod
    def of(
        text: str,
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
        checkpoint: Path | None,
        resume: bool,
    ) -> "RecoveryPlan":
        """Out of the words of a command line; ``text`` is ``none`` or steps separated by commas.

        Raises:
            UserError: a value that means nothing.
        """
        if minutes is not None and not minutes > 0:
            raise UserError(f"minutes={minutes} is a number above 0", hint="leave it out for no limit")
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
            time_limit_seconds=None if minutes is None else 60 * minutes,
        )
        return RecoveryPlan(names, settings, checkpoint=checkpoint, resume=resume)
