"""What a recovery does, as far as its result depends on it."""

from dataclasses import dataclass, fields
from typing import Final, Literal

from flowopt.errors import UserError
from flowopt.recovery.defaults import (
    EVALUATIONS,
    FEATURE_WEIGHT,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_LAYERS,
    LORA_RANK,
    LOSS,
    OPTIMIZER,
    PATIENCE,
    SCHEDULE,
    SETTLE,
    STEPS,
)
from flowopt.recovery.user_loss import require_loss_name

OptimizerName = Literal["adamw", "adamp", "sgdp"]
Schedule = Literal["all", "one-at-a-time"]
LoraLayers = Literal["attention", "all"]
_WITHOUT: Final = {"time_limit_seconds": " for no limit", "evaluate_every": ""}


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """Settings of a distillation.

    Attributes:
        steps: of the optimizer.
        learning_rate: the largest one, after the warm-up.
        warmup: share of the steps in which the learning rate rises from 0; then it falls along a cosine.
        final_learning_rate: share of the learning rate that is left at the end.
        optimizer: AdamP and SGDP remove the part of an update that only changes the length of weights before a norm.
        weight_decay: of matrices alone.
        clip: largest norm of all gradients together; 0 for none.
        loss: ``kl`` of logits, ``mse`` relative to the teacher's square, ``cosine``, or ``package.module:function``.
        outputs: names of the outputs that are compared; all floating ones where it is empty.
        temperature: of ``kl``.
        features: names of nodes whose values are compared too, relative to the teacher's square.
        feature_weight: of their mean beside the loss.
        schedule: ``one-at-a-time`` puts one norm after another into place; until then the original one is computed.
        order: of the norms, by name; by what reads them where it is empty (``flowopt.recovery.norm_order``).
        swap_share: share of the steps after which the last norm is in place.
        settle: share of the steps, the last ones, in which the statistics of the swapped norms stand still. With less
            than all, norms are trained as published, on the statistics of batches: a trained model may diverge then.
            One at a time, they do not stand still before the last norm was in place for a twentieth of the steps.
        evaluate_every: steps between evaluations, after each of which a checkpoint is written; None for a tenth of all.
        patience: evaluations without improvement after which it ends; 0 for never.
        divergence: how many times the loss of the start it may become.
        lora_rank: above 0, weights are frozen, and matrices of this rank are trained to be added to those of linear
            layers; leaves are trained as ever.
        lora_alpha: what is added is scaled by ``lora_alpha / lora_rank``.
        lora_layers: ``attention``, the projections before and behind it, or ``all``.
        time_limit_seconds: after which it ends with the best state so far; None for no limit.
        seed: of random numbers that a leaf may draw.

    Raises:
        UserError: a value that means nothing.
    """

    steps: int = STEPS
    learning_rate: float = LEARNING_RATE
    warmup: float = 0.05
    final_learning_rate: float = 0.0
    optimizer: OptimizerName = OPTIMIZER
    weight_decay: float = 0.0
    clip: float = 1.0
    loss: str = LOSS
    outputs: tuple[str, ...] = ()
    temperature: float = 1.0
    features: tuple[str, ...] = ()
    feature_weight: float = FEATURE_WEIGHT
    schedule: Schedule = SCHEDULE
    order: tuple[str, ...] = ()
    swap_share: float = 0.5
    settle: float = SETTLE
    evaluate_every: int | None = None
    patience: int = PATIENCE
    divergence: float = 10.0
    lora_rank: int = LORA_RANK
    lora_alpha: float = LORA_ALPHA
    lora_layers: LoraLayers = LORA_LAYERS
    time_limit_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "temperature", "divergence", "lora_alpha"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        every = self.evaluate_every
        _require(every is None or every >= 1, "evaluate_every", every, "at least 1, or None for a tenth of the steps")
        for name in ("weight_decay", "clip", "feature_weight", "patience", "lora_rank"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number from 0")
        for name in ("warmup", "final_learning_rate", "swap_share", "settle"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")
        _require(self.lora_layers in ("attention", "all"), "lora_layers", self.lora_layers, "attention or all")
        limit = self.time_limit_seconds
        _require(limit is None or limit > 0, "time_limit_seconds", limit, "a number above 0, or None")
        _require(self.optimizer in ("adamw", "adamp", "sgdp"), "optimizer", self.optimizer, "adamw, adamp or sgdp")
        require_loss_name(self.loss)
        _require(self.schedule in ("all", "one-at-a-time"), "schedule", self.schedule, "all or one-at-a-time")

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations."""
        return self.evaluate_every or max(1, self.steps // EVALUATIONS)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        default = next(one.default for one in fields(RecoverySettings) if one.name == name)
        hint = f"such as {default}" if default is not None else f"leave it out{_WITHOUT[name]}"
        raise UserError(f"{name}={value!r}: it must be {wanted}", hint=hint)
