"""Which norms are swapped at a step, and from when on their statistics stand still."""

import math
from typing import Final, final

from torch import nn

from flowopt.errors import UserError
from flowopt.recovery.norm_order import norm_order
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.trainable import Trainable

# Share of the steps in which the norm that is swapped last follows its batches at least.
_LIVE: Final = 0.05


@final
class SwapSchedule:
    """The schedule of one student.

    Args:
        student: whose leaves are put into place.
        settings: schedule, order, shares of the steps.

    Raises:
        UserError: an order that does not name every swapped norm once.
    """

    def __init__(self, student: Trainable, settings: RecoverySettings) -> None:
        names = tuple(student.leaves)
        if settings.order and sorted(settings.order) != sorted(names):
            raise UserError(
                f"order={settings.order}: it must name every swapped norm once", hint=f"they are {list(names)}"
            )
        self._student = student
        order = settings.order or norm_order(student.program, names)
        span = settings.steps * settings.swap_share if settings.schedule == "one-at-a-time" else 0.0
        self._begins = {name: math.floor(i * span / len(order)) for i, name in enumerate(order)}
        self._settles = settings.steps - math.floor(settings.settle * settings.steps)
        if span and settings.settle < 1:
            # The last norm would otherwise stand still on statistics of before all the others were swapped.
            live = math.ceil(_LIVE * settings.steps)
            self._settles = max(self._settles, max(self._begins.values()) + live)

    def active(self, step: int) -> frozenset[str]:
        """Names of the norms that are swapped when a step, counted from 0, is trained."""
        return frozenset(name for name, begin in self._begins.items() if begin <= step)

    def is_complete(self, step: int) -> bool:
        """Whether all are."""
        return all(begin <= step for begin in self._begins.values())

    def apply(self, step: int) -> None:
        """Put the student into the state in which a step is trained."""
        self._student.train()
        self._student.active = self.active(step)
        if step >= self._settles:
            for leaf in self._student.leaves.values():
                _settle(leaf)

    def apply_all(self) -> None:
        """Put it into the state in which it is evaluated: every norm swapped, statistics as they are."""
        self._student.eval()
        self._student.active = frozenset(self._begins)


def _settle(leaf: nn.Module) -> None:
    settle = getattr(leaf, "settle", None)
    if callable(settle):
        settle()
