"""Whether a recovery moves towards the original, or away from it."""

import math

from flowopt.errors import Diverged
from flowopt.recovery.run_state import RunState
from flowopt.recovery.settings import RecoverySettings

# One bad batch is no divergence: so many training losses in a row have to be too large.
_IN_A_ROW = 5


def require_convergence(state: RunState, settings: RecoverySettings, loss: float, noise: float) -> None:
    """Stop at a training loss that is not finite, or the last of several far above the loss before training.

    Args:
        state: before the step; the loss is put to the newest ones.
        settings: how far is too far.
        loss: of the step, with every norm swapped.
        noise: a loss up to which the one before training counts as that large.

    Raises:
        Diverged: it does.
    """
    require_finite(state, settings, loss, f"the loss at step {state.step + 1}")
    state.last = [*state.last, loss][-_IN_A_ROW:]
    start = max(state.history[0].held_out, noise)
    if len(state.last) == _IN_A_ROW and min(state.last) > settings.divergence * start:
        times = min(state.last) / start
        raise _diverged(
            state, settings, f"the loss is {loss:.4g} at step {state.step + 1}, {times:.0f} times the start's"
        )


def require_finite(state: RunState, settings: RecoverySettings, value: float, what: str) -> None:
    """Stop at a number that is none; ``what`` it is stands in the message.

    Raises:
        Diverged: it is infinite or no number.
    """
    if not math.isfinite(value):
        raise _diverged(state, settings, f"{what} is {value}")


def _diverged(state: RunState, settings: RecoverySettings, message: str) -> Diverged:
    rate = settings.learning_rate
    return Diverged(
        message,
        why=f"it was {state.history[0].held_out:.4g} before training" if state.history else "",
        hint=f"a smaller learning rate, such as {rate / 3:.2g} instead of {rate:.2g}\n"
        "fewer norms: leave out those with the largest scores\n"
        "the schedule one-at-a-time",
    )
