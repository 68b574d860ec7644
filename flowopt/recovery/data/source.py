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
    """

    name: str
    training_batches: int | None
    has_validation: bool

    def training(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, in an order that follows from the seed and the epoch."""

    def validation(self) -> Iterator[Batch]:
        """The same batches at every call; none where no part is kept for it, or the part fills none."""

    def held_out(self) -> Iterator[Batch]:
        """The same batches at every call."""
