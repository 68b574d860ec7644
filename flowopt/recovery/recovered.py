"""What a recovery tells while it runs and when it ends."""

from dataclasses import dataclass
from typing import Literal

from flowopt.recovery.run_state import Evaluation

Stopped = Literal["steps", "patience", "time"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One trained step. ``held_out`` is set where it was followed by an evaluation."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    swapped: int
    seconds: float
    held_out: float | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery reached.

    Attributes:
        steps: that were trained.
        stopped: why it ended.
        start_loss: on held-out data, before training.
        best_loss: of the state that the student was left in.
        best_step: after which it was found; 0 where training made nothing better.
        history: every evaluation.
        seconds: over all runs.
    """

    steps: int
    stopped: Stopped
    start_loss: float
    best_loss: float
    best_step: int
    history: tuple[Evaluation, ...]
    seconds: float
