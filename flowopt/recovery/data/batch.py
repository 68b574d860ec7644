"""Some samples: what the model takes, and what else is known of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors by name, on the CPU; samples lie along the first axis, where the model's inputs have one for them.

    Attributes:
        inputs: in the model's dtypes; stored state of the model is not among them.
        extra: arrays that are no inputs of the model, such as labels.
    """

    inputs: Mapping[str, Tensor]
    extra: Mapping[str, Tensor]

    @property
    def samples(self) -> int:
        """Size of the first axis."""
        return len(next(iter(self.inputs.values())))

    @property
    def sizes(self) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
        """Name, sizes of one sample and dtype of every array: batches that agree in them can be joined."""
        arrays = {**self.inputs, **self.extra}
        return tuple(sorted((name, tuple(a.shape[1:]), a.dtype) for name, a in arrays.items()))

    def rows(self, index: Tensor | slice) -> "Batch":
        """The samples that ``index`` picks: (count,) int64, or a slice."""
        return Batch({n: a[index] for n, a in self.inputs.items()}, {n: a[index] for n, a in self.extra.items()})


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several whose ``sizes`` agree."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return Batch(
        {name: torch.cat([b.inputs[name] for b in batches]) for name in first.inputs},
        {name: torch.cat([b.extra[name] for b in batches]) for name in first.extra},
    )
