"""Batches that come one after another, and are never counted before they have come."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, final

import numpy as np

from flowopt.errors import UserError
from flowopt.program.loading.imported import called
from flowopt.recovery.data.batch import Batch, joined
from flowopt.recovery.data.batch_axis import require_axis, require_batch_size
from flowopt.recovery.data.fitting import Fitting

_WINDOW: Final = 16
_END: Final = object()


@final
class Stream:
    """A source that is walked anew in each epoch; every k-th batch, from the first, is held out.

    An epoch's order is that of the walk, mixed inside a window of 16 batches.

    Args:
        name: for messages.
        made: gives what is walked, at every call from its beginning and in the same order.
        fitting: checks each batch.
        size: samples in a batch, for which what comes is cut and joined; None: batches as they come, unless the model
            takes a fixed number.
        validation: fraction of the batches, beside those that are held out; 0 or below 0.5.
        held_out: fraction; k is the nearest whole number to its inverse, and 2 at least.
        seed: of every epoch's order.
        most: samples after which a walk ends; batches are counted where the model has no axis of samples.
    """

    def __init__(
        self,
        name: str,
        made: Callable[[], Any],
        fitting: Fitting,
        size: int | None,
        *,
        held_out: float,
        validation: float = 0.0,
        seed: int,
        most: int | None = None,
    ) -> None:
        self.name = name
        self.training_batches: int | None = None
        self.has_validation = validation > 0
        self.held_out_samples: int | None = None
        self._made, self._fitting, self._seed, self._most = made, fitting, seed, most
        is_fixed = fitting.axis is not None and fitting.axis.is_fixed
        self._size = require_batch_size(size, require_axis(fitting.axis), 1) if size is not None or is_fixed else None
        # 0: none; 1: all.
        self._every = 0 if held_out == 0 else 1 if held_out >= 1 else max(2, round(1 / held_out))
        # The second of so many: held-out batches are the first of theirs.
        self._validated = 0 if validation == 0 else max(3, round(1 / validation))

    def require_first(self) -> None:
        """Check the first batch: what does not fit is to be said before anything is computed.

        Raises:
            UserError: it does not fit, or there is none.
        """
        if next(self._arriving(), None) is None:
            raise UserError(f"{self.name} gives no batch", hint="it must return at least one")

    def training(self, epoch: int, start: int) -> Iterator[Batch]:
        """What fills no batch is left out."""
        generator = np.random.default_rng((self._seed, 1, epoch))
        found = (batch for i, batch in enumerate(self._batches()) if self._is_trained(i) and self._is_full(batch))
        first = next(found, None)
        if first is None:
            raise UserError(
                f"{self.name} ended before a batch for training",
                hint="yield more batches, or give a smaller batch size or held-out fraction",
            )
        return itertools.islice(_mixed(itertools.chain([first], found), generator), start, None)

    def held_out(self) -> Iterator[Batch]:
        """In the order of the walk; a last, smaller batch is kept where the model takes it."""
        return self._those(self._is_held)

    def validation(self) -> Iterator[Batch]:
        """Likewise."""
        return self._those(self._is_validated)

    def everything(self) -> Iterator[Batch]:
        """Nothing: it may never end."""
        return iter(())

    def _those(self, wanted: Callable[[int], bool]) -> Iterator[Batch]:
        axis = self._fitting.axis
        found = (batch for i, batch in enumerate(self._batches()) if wanted(i))
        return (batch for batch in found if axis is None or axis.takes(batch.samples))

    def _is_held(self, number: int) -> bool:
        return bool(self._every) and number % self._every == 0

    def _is_validated(self, number: int) -> bool:
        return bool(self._validated) and number % self._validated == 1 and not self._is_held(number)

    def _is_trained(self, number: int) -> bool:
        return not self._is_held(number) and not self._is_validated(number)

    def _is_full(self, batch: Batch) -> bool:
        return self._size is None or batch.samples == self._size

    def _batches(self) -> Iterator[Batch]:
        return self._arriving() if self._size is None else _resized(self._arriving(), self._size)

    def _arriving(self) -> Iterator[Batch]:
        made = called(self.name, self._made)
        if not isinstance(made, Iterable):
            raise UserError(
                f"{self.name} gives {type(made).__name__}, which cannot be walked",
                hint="return a list or a generator of batches, each a dictionary or a tuple of arrays",
            )
        walk, left = iter(made), self._most
        for number in itertools.count():
            arrays = called(self.name, lambda: next(walk, _END)) if left is None or left > 0 else _END
            if arrays is _END:
                return
            batch = self._fitting.batch(f"{self.name}, batch {number}", arrays)
            samples = batch.samples if self._fitting.axis is not None else 1
            if left is not None:
                batch = batch.rows(slice(left)) if samples > left else batch
                left -= samples
            yield batch


def _resized(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Batches of ``size`` samples, and what is left over of each shape at the end."""
    waiting: dict[object, list[Batch]] = {}
    for batch in batches:
        parts = waiting.setdefault(batch.sizes, [])
        while batch.samples:
            free = size - sum(part.samples for part in parts)
            parts.append(batch.rows(slice(free)))
            batch = batch.rows(slice(free, None))
            if parts[-1].samples == free:
                yield joined(parts)
                parts.clear()
    yield from (joined(parts) for parts in waiting.values() if parts)


def _mixed(batches: Iterable[Batch], generator: np.random.Generator) -> Iterator[Batch]:
    window: list[Batch] = []
    for batch in batches:
        if len(window) < _WINDOW:
            window.append(batch)
            continue
        out = int(generator.integers(_WINDOW))
        yield window[out]
        window[out] = batch
    yield from (window[int(i)] for i in generator.permutation(len(window)))
