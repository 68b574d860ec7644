"""Samples that can be counted: arrays in memory or in files, of which one is in memory at a time.

Batches are planned as rows of shards before any is read, so that a training that is taken up again passes over what
it has seen without reading it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch, joined
from flowopt.recovery.data.batch_axis import BatchAxis, require_axis, require_batch_size

Rows = np.ndarray[Any, np.dtype[np.int64]]
_Plan = list[tuple[int, Rows]]
_USUAL: Final = 32


@final
@dataclass(frozen=True, slots=True)
class Shard:
    """Some samples. ``sizes`` as of a ``Batch``: those of one batch agree in them."""

    read: Callable[[], Batch]
    samples: int
    sizes: object


@final
class Shards:
    """A source of counted samples: a fraction of them, drawn by seed, is held out.

    Args:
        name: for messages.
        shards: in a fixed order.
        size: samples in a batch; None: 32, or as many as there are or the model takes.
        axis: how many the model takes at a time; None is refused.
        held_out: fraction of the samples.
        validation: fraction of the others; where any, at least as many as the model takes at once.
        seed: of the draw and of every epoch's order.
        most: samples to use, drawn by seed; None: all.

    Raises:
        UserError: fewer samples for training than one batch, or a batch that the model does not take.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[Shard],
        size: int | None,
        axis: BatchAxis | None,
        *,
        held_out: float,
        validation: float = 0.0,
        seed: int,
        most: int | None = None,
    ) -> None:
        self.name = name
        self._shards, self._seed = shards, seed
        self._axis = require_axis(axis)
        self.has_validation = validation > 0
        self._training, self._validation, self._held = self._split(held_out, validation, most)
        counts: Counter[object] = Counter()
        for shard, rows in zip(shards, self._held if held_out == 1 else self._training, strict=True):
            counts[shard.sizes] += len(rows)
        self._size = require_batch_size(size, self._axis, min(_USUAL, max(counts.values())))
        self.training_batches: int | None = sum(count // self._size for count in counts.values())
        plans = self._planned(enumerate(self._held), rest=True)
        sizes = (sum(len(rows) for _, rows in plan) for plan in plans)
        self.held_out_samples: int | None = sum(size for size in sizes if self._axis.takes(size))
        self._kept: tuple[int, Batch] | None = None
        if held_out < 1 and not self.training_batches:
            raise self._too_few(counts)

    def training(self, epoch: int, start: int) -> Iterator[Batch]:
        """Shards in a new order, and the samples of each in a new order; what fills no batch is left out."""
        generator = np.random.default_rng((self._seed, 1, epoch))
        order = generator.permutation(len(self._shards))
        walk = ((int(i), generator.permutation(self._training[i])) for i in order)
        return self._read(walk, start=start)

    def held_out(self) -> Iterator[Batch]:
        """In the order of the shards; a last, smaller batch is kept where the model takes it."""
        return (b for b in self._read(enumerate(self._held), rest=True) if self._axis.takes(b.samples))

    def validation(self) -> Iterator[Batch]:
        """As what is held out, of the samples that are kept for it."""
        return (b for b in self._read(enumerate(self._validation), rest=True) if self._axis.takes(b.samples))

    def everything(self) -> Iterator[Batch]:
        """One shard after another, those samples too that are not used."""
        return (shard.read() for shard in self._shards)

    def _split(self, held_out: float, validation: float, most: int | None) -> tuple[list[Rows], list[Rows], list[Rows]]:
        ends = np.cumsum([shard.samples for shard in self._shards])
        chosen = np.random.default_rng((self._seed, 0)).permutation(int(ends[-1]))[:most]
        rest, held = _parted(chosen, held_out)
        # Too few to make a batch of, they would be lost to everyone, and nothing would be left to choose by.
        training, validated = _parted(rest, validation, least=max(1, self._axis.low))
        starts = ends - [shard.samples for shard in self._shards]
        parts = [np.sort(part) for part in (training, validated, held)]
        first, second, third = (
            [rows - start for rows, start in zip(np.split(p, np.searchsorted(p, ends)[:-1]), starts, strict=True)]
            for p in parts
        )
        return first, second, third

    def _read(self, walk: Iterable[tuple[int, Rows]], *, start: int = 0, rest: bool = False) -> Iterator[Batch]:
        for number, plan in enumerate(self._planned(walk, rest)):
            if number >= start:
                yield joined([self._shard(i).rows(torch.from_numpy(rows)) for i, rows in plan])

    def _planned(self, walk: Iterable[tuple[int, Rows]], rest: bool) -> Iterator[_Plan]:
        """Rows for each batch; samples of one shape wait for others of it, and with ``rest`` for no more than exist."""
        waiting: dict[object, _Plan] = {}
        for i, rows in walk:
            plan = waiting.setdefault(self._shards[i].sizes, [])
            while len(rows):
                free = self._size - sum(len(part) for _, part in plan)
                plan.append((i, rows[:free]))
                rows = rows[free:]
                if len(plan[-1][1]) == free:
                    yield list(plan)
                    plan.clear()
        if rest:
            yield from (plan for plan in waiting.values() if plan)

    def _shard(self, i: int) -> Batch:
        """One shard at a time is kept: a plan reads each one's rows together."""
        if self._kept is None or self._kept[0] != i:
            self._kept = None
            self._kept = i, self._shards[i].read()
        return self._kept[1]

    def _too_few(self, counts: Counter[object]) -> UserError:
        samples = sum(counts.values())
        shapes = f" of {len(counts)} different shapes" if len(counts) > 1 else ""
        largest = max(counts.values())
        smaller = largest > 0 and self._axis.takes(largest)
        return UserError(
            f"{self.name}: {samples:,} samples for training{shapes} fill no batch of {self._size}",
            why=self._kept_apart(),
            hint=f"give more data, or a batch size of at most {largest}" if smaller else "give more data",
        )

    def _kept_apart(self) -> str:
        held, validated = (sum(map(len, part)) for part in (self._held, self._validation))
        kept = [f"{held:,} are held out"] if held else []
        kept += [f"{validated:,} kept to choose the best state by"] if validated else []
        return " and ".join(kept)


def _parted(rows: Rows, share: float, least: int = 1) -> tuple[Rows, Rows]:
    """All but a share, and the share: ``least`` rows of it, so that what was asked for can be looked at."""
    count = max(round(len(rows) * share), min(least, len(rows) - 1) if share and len(rows) > 1 else 0)
    return rows[: len(rows) - count], rows[len(rows) - count :]
