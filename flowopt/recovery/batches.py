"""Batches of training, one epoch after the other, from any place on."""

from collections.abc import Iterator

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.data.data import Data
from flowopt.recovery.distributed import rank, world_size


def endless(data: Data, epoch: int, taken: int) -> Iterator[tuple[int, int, Batch]]:
    """This process's share of every batch.

    Args:
        data: where they come from.
        epoch: to begin with.
        taken: batches of that epoch that were used before.

    Yields:
        The epoch, how many of its batches are used with this one, and this one.

    Raises:
        UserError: there is nothing to train on, or a batch that the processes can not share equally.
    """
    while True:
        start = taken
        for batch in data.training(epoch, start, rank=rank(), world=world_size()):
            taken += 1
            yield epoch, taken, batch
        if taken == 0:
            raise UserError(
                f"{data.name} has no batch to train on",
                hint="give more data, smaller batches, or hold a smaller part out",
            )
        epoch, taken = epoch + 1, 0
