"""The user's data, as recovery asks for it."""

import itertools
from collections.abc import Iterator
from typing import final

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.data.batch_axis import BatchAxis
from flowopt.recovery.data.source import Source


@final
class Data:
    """Batches for calibration, training and judgement; ``open_data`` makes one.

    Attributes:
        name: of the source, for reports.
        training_batches: in one epoch; None for streams.
        has_held_out: whether any part was asked to be held out.
        held_out_samples: how many; of a stream None until ``held_out`` was walked to its end.
    """

    def __init__(self, source: Source, held: Source | None, axis: BatchAxis | None) -> None:
        self.name = source.name
        self.training_batches = source.training_batches
        self.has_held_out = held is not None
        self.held_out_samples: int | None = 0 if held is None else held.held_out_samples
        self._source, self._held, self._axis = source, held, axis

    def calibration(self, count: int) -> Iterator[Batch]:
        """The first ``count`` batches of the first epoch, or all where there are fewer."""
        return itertools.islice(self.training(0), count)

    def training(self, epoch: int, start_batch: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of one epoch: the same for the same seed and epoch, on every machine.

        Args:
            epoch: from 0.
            start_batch: number of the first batch, for a training that is taken up again.
            rank: of this process; of every batch it gets the ``rank``-th of ``world`` equal parts.
            world: number of processes.

        Raises:
            UserError: a batch that cannot be shared equally, or whose share the model does not take.
        """
        return (self._share(batch, rank, world) for batch in self._source.training(epoch, start_batch))

    def validation(self) -> Iterator[Batch]:
        """The batches to choose by while training; the held-out ones where no part was asked for.

        Raises:
            UserError: a part was asked for, and there is no batch in it; else as ``held_out``.
        """
        if not self._source.has_validation:
            return self.held_out()
        batches = self._source.validation()
        first = next(batches, None)
        if first is None:
            raise UserError(
                f"{self.name} has no batch to choose the best state by",
                why="held-out data stay unseen, and nothing is left beside them and what is trained on",
                hint="give more data, or smaller batches",
            )
        return itertools.chain([first], batches)

    def held_out(self) -> Iterator[Batch]:
        """The held-out batches, the same at every call; none where nothing is held out.

        Raises:
            UserError: something was to be held out, and there is nothing.
        """
        if self._held is None:
            return iter(())
        batches = self._held.held_out()
        first = next(batches, None)
        if first is None:
            raise UserError(
                f"{self._held.name} has no batch to hold out",
                hint="give more data, a larger held-out fraction, or a file of its own as held_out",
            )
        return self._counted(itertools.chain([first], batches))

    def identifying(self) -> Iterator[Batch]:
        """What tells these data from others: the first batch of each part, and all samples where they are counted.

        Of a stream no more is read than that: later batches may differ unnoticed.
        """
        for part in (self.training(0), self.validation(), self.held_out()):
            yield from itertools.islice(part, 1)
        yield from self._source.everything()
        if self._held is not None and self._held is not self._source:
            yield from self._held.everything()

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        samples = 0
        for batch in batches:
            samples += batch.samples
            yield batch
        self.held_out_samples = samples

    def _share(self, batch: Batch, rank: int, world: int) -> Batch:
        if world == 1:
            return batch
        if self._axis is None:
            raise UserError(
                f"the batches of {self.name} cannot be shared among {world} processes",
                why="the model's inputs share no first axis",
                hint="run in one process",
            )
        share, left = divmod(batch.samples, world)
        if left or not self._axis.takes(share):
            raise UserError(
                f"a batch of {batch.samples} samples cannot be shared among {world} processes",
                why=f"{share} and a rest of {left} for each; the model takes {self._axis} at a time",
                hint=f"give a batch size that {world} divides"
                if not self._axis.is_fixed
                else "run in one process, or capture the model with a free first axis",
            )
        return batch.rows(slice(rank * share, (rank + 1) * share))
