"""Whether a recovery moves towards the original, or away from it."""

import math
from typing import Final

from flowopt.errors import Diverged
from flowopt.recovery.run_state import RunState
from flowopt.recovery.settings import RecoverySettings

# One bad batch is no divergence: so many training losses in a row have to be too large.
_IN_A_ROW = 5
_OF_NORMS: Final = ("fewer norms: leave out those with the largest scores", "the schedule one-at-a-time")
_OF_ATTENTION: Final = (
    "fewer layers: leave out those with the largest errors, or keep softmax in some (--keep-softmax 0.25)",
    "matrices of low rank instead of all weights (--lora 8)",
)


def require_convergence(
    state: RunState, settings: RecoverySettings, loss: float, noise: float, *, of_attention: bool = False
) -> None:
    """Stop at a training loss that is not finite, or the last of several far above the loss before training.

    Args:
        state: before the step; the loss is put to the newest ones.
        settings: how far is too far.
        loss: of the step, with every norm swapped.
        noise: a loss up to which the one before training counts as that large.
        of_attention: attention was replaced, not norms.

    Raises:
        Diverged: it does.
    """
    require_finite(state, settings, loss, f"the loss at step {state.step + 1}", of_attention=of_attention)
    state.last = [*state.last, loss][-_IN_A_ROW:]
    start = max(state.history[0].held_out, noise)
    if len(state.last) == _IN_A_ROW and min(state.last) > settings.divergence * start:
        times = min(state.last) / start
        message = f"the loss is {loss:.4g} at step {state.step + 1}, {times:.0f} times the start's"
        raise _diverged(state, settings, message, of_attention=of_attention)


def require_finite(
    state: RunState, settings: RecoverySettings, value: float, what: str, *, of_attention: bool = False
) -> None:
    """Stop at a number that is none; ``what`` it is stands in the message.

    Raises:
        Diverged: it is infinite or no number.
    """
    if not math.isfinite(value):
        raise _diverged(state, settings, f"{what} is {value}", of_attention=of_attention)


def _diverged(state: RunState, settings: RecoverySettings, message: str, *, of_attention: bool) -> Diverged:
    rate = settings.learning_rate
    return Diverged(
        message,
        why=f"it was {state.history[0].held_out:.4g} before training" if state.history else "",
        hint="\n".join(
            [
                f"a smaller learning rate, such as {rate / 3:.2g} instead of {rate:.2g}",
                *(_OF_ATTENTION if of_attention else _OF_NORMS),
            ]
        ),
    )
