"""What every kind of data can do."""

from collections.abc import Iterator
from typing import Protocol

from flowopt.recovery.data.batch import Batch


class Source(Protocol):
    """Samples in three parts that never mix: for training, to choose by while training, and held out.

    Attributes:
        name: for messages and reports.
        training_batches: in one epoch; None where only a walk would tell.
        has_validation: whether a part was asked for to choose by.
        held_out_samples: in ``held_out``; None where only a walk would tell.
    """

    name: str
    training_batches: int | None
    has_validation: bool
    held_out_samples: int | None

    def training(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, in an order that follows from the seed and the epoch."""

    def validation(self) -> Iterator[Batch]:
        """The same batches at every call; none where no part is kept for it, or the part fills none."""

    def held_out(self) -> Iterator[Batch]:
        """The same batches at every call."""

    def everything(self) -> Iterator[Batch]:
        """All samples in a fixed order, whatever they serve for; none where only a walk would tell how many."""
