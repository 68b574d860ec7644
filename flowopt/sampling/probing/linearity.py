"""Whether a scheduler does on arbitrary tensors what its table says."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.sampling.probing.run import Run
from flowopt.sampling.spec import Table

_TOLERANCE = 1e-5
# Batch, channels and extent: a step that mixes positions is not a combination of tensors. One size per batch entry:
# clipping does nothing to small numbers, and a step that adds a constant nothing visible to large ones.
_SHAPE = (6, 2, 2, 2)
_EXPONENTS = (-3.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@final
@dataclass(slots=True)
class Weights:
    """Random tensors in place of the initial noise, the network's outputs and drawn noise, always the same ones."""

    dtype: torch.dtype
    varied: bool = True
    drawn: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def get(self, kind: int, number: int) -> Tensor:
        """Of kind 0, the initial noise; 1, an output; 2, a draw."""
        if (kind, number) not in self.drawn:
            rng = numpy.random.default_rng([kind, number])
            values = rng.standard_normal(_SHAPE)
            if self.varied:
                values *= (10.0 ** numpy.array(_EXPONENTS))[:, None, None, None]
            self.drawn[kind, number] = torch.from_numpy(values).to(self.dtype)
        return self.drawn[kind, number].clone()

    def kind(self, kind: int) -> Callable[[int], Tensor]:
        """The tensors of one kind, by number."""
        return lambda number: self.get(kind, number)

    def columns(self, outputs: int, draws: int) -> Table:
        """All of them, in the order of a table's columns: [1 + outputs + draws, values], float64."""
        keys = [(0, 0), *((1, j) for j in range(outputs)), *((2, k) for k in range(draws))]
        return numpy.stack([self.get(*key).double().numpy() for key in keys])


def difference(run: Run, table: Table, weights: Weights) -> float:
    """The largest difference of what was computed and what the table says, relative to the sum of its terms' sizes.

    Each tensor of the batch has its own scale.
    """
    columns = weights.columns(len(run.rows) - 1, run.draws)
    worst = 0.0
    for row, computed in zip(table, run.rows, strict=True):
        expected = numpy.tensordot(row, columns, 1)
        scale = numpy.tensordot(numpy.abs(row), numpy.abs(columns), 1).max(axis=(1, 2, 3))
        gap = numpy.abs(computed.double().numpy() - expected).max(axis=(1, 2, 3))
        part = (gap / numpy.where(scale > 0, scale, 1.0)).max()
        worst = max(worst, float(part) if numpy.isfinite(part) else math.inf)
    return worst


def require_linear(scheduler: object, error: float) -> None:
    """The table is what the scheduler computes.

    Raises:
        UserError: it is not; the message names the options that are on and clip or limit values.
    """
    if error < _TOLERANCE:
        return
    name = type(scheduler).__name__
    options = _clipping(scheduler)
    changed = ", ".join(f"{option}=False" for option in options)
    raise UserError(
        f"{name} is no table of numbers: its steps are not linear (they differ by {error:.1e} of the values)",
        why=" and ".join(f"{option}=True" for option in options) + " changes values depending on their size"
        if options
        else "none of its settings is known to clip values: it may adapt its steps, or keep state from other samples",
        hint=f"{name}.from_config(scheduler.config, {changed})" if options else "",
    )


def _clipping(scheduler: Any) -> list[str]:
    config = getattr(scheduler, "config", None)
    settings = config if isinstance(config, dict) else vars(scheduler)
    return [key for key, value in settings.items() if value is True and ("clip" in key or "threshold" in key)]
