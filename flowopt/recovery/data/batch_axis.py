"""How many samples a model takes at once."""

from dataclasses import dataclass
from typing import final

from flowopt.errors import UserError
from flowopt.program.interface import Interface


@final
@dataclass(frozen=True, slots=True)
class BatchAxis:
    """The first axis of every input: ``low`` to ``high`` samples, both included; no limit where ``high`` is None."""

    low: int
    high: int | None

    @property
    def is_fixed(self) -> bool:
        """Whether the model was captured for one number of samples."""
        return self.low == self.high

    def takes(self, samples: int) -> bool:
        """Whether the model runs on that many samples."""
        return self.low <= samples and (self.high is None or samples <= self.high)

    def __str__(self) -> str:
        if self.is_fixed:
            return f"exactly {self.low}"
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


def batch_axis(interface: Interface) -> BatchAxis | None:
    """The first axis of all inputs where they share one, fixed or free; None where they do not."""
    shapes = [spec.shape for spec in interface.inputs if spec.state is None]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        return None
    first = shapes[0][0]
    if isinstance(first, int):
        return BatchAxis(first, first)
    return BatchAxis(*interface.dims[first]) if first in interface.dims else None


def require_axis(axis: BatchAxis | None) -> BatchAxis:
    """The axis of samples.

    Raises:
        UserError: the model has none.
    """
    if axis is None:
        raise UserError(
            "samples cannot be counted: the model's inputs share no first axis",
            hint="give package.module:factory, a function that returns whole batches one after another, "
            "and no batch size",
        )
    return axis


def require_batch_size(asked: int | None, axis: BatchAxis, otherwise: int) -> int:
    """Samples in a batch: what is asked for, else as near to ``otherwise`` as the model takes.

    Raises:
        UserError: the model does not take that many.
    """
    if asked is None:
        return max(axis.low, 1, otherwise if axis.high is None else min(axis.high, otherwise))
    if asked < 1 or not axis.takes(asked):
        hint = "leave the batch size out" if axis.is_fixed else "give a batch size in that range"
        raise UserError(f"the batch size is {asked}, but the model takes {axis} samples at a time", hint=hint)
    return asked
