"""Write a sampler as ordinary arithmetic, and get its table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy

from flowopt.sampling.spec import SamplerSpec, Table

_Key = tuple[str, int]
_START: _Key = ("start", 0)


@final
@dataclass(frozen=True, slots=True)
class Combination:
    """A sum of multiples of the initial noise, the network's outputs and drawn noise.

    It takes ``+``, ``-``, products and quotients with numbers; anything else would not be linear.
    """

    parts: dict[_Key, float] = field(default_factory=dict)

    def __add__(self, other: "Combination") -> "Combination":
        keys = self.parts.keys() | other.parts.keys()
        return Combination({key: self.parts.get(key, 0.0) + other.parts.get(key, 0.0) for key in sorted(keys)})

    def __sub__(self, other: "Combination") -> "Combination":
        return self + other * -1.0

    def __neg__(self) -> "Combination":
        return self * -1.0

    def __mul__(self, factor: float) -> "Combination":
        return Combination({key: part * factor for key, part in self.parts.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Combination":
        return Combination({key: part / divisor for key, part in self.parts.items()})


@final
class Trace:
    """Records what a sampler does: start, evaluate, draw, and what it returns.

    trace = Trace()
    x = trace.start
    for t, h in zip(times, sizes):
        x = x + h * trace.evaluate(x, t)
    spec = trace.finished("euler", x)
    """

    def __init__(self) -> None:
        self._inputs: list[Combination] = []
        self._times: list[tuple[float, ...]] = []
        self._draws = 0

    @property
    def start(self) -> Combination:
        """The initial noise."""
        return Combination({_START: 1.0})

    def evaluate(self, sample: Combination, *times: float) -> Combination:
        """The network's output for an input and the times that it is told."""
        self._inputs.append(sample)
        self._times.append(tuple(float(t) for t in times))
        return Combination({("output", len(self._inputs) - 1): 1.0})

    def draw(self) -> Combination:
        """Fresh noise: one more input of the folded sampler."""
        self._draws += 1
        return Combination({("draw", self._draws - 1): 1.0})

    def finished(self, name: str, sample: Combination, *, notes: Sequence[str] = ()) -> SamplerSpec:
        """The table of everything that was recorded, with ``sample`` as its result."""
        count = len(self._inputs)
        table: Table = numpy.zeros((count + 1, 1 + count + self._draws))
        for row, combination in enumerate([*self._inputs, sample]):
            for (kind, number), part in combination.parts.items():
                offset = {"start": 0, "output": 1, "draw": 1 + count}[kind]
                table[row, offset + number] = part
        return SamplerSpec(name, tuple(self._times), table, self._draws, notes=tuple(notes))
