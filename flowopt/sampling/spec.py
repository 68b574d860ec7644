"""A sampler with a fixed schedule, as a table of numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy
from numpy.typing import NDArray

from flowopt.errors import UserError

Table = NDArray[numpy.float64]


@final
@dataclass(frozen=True, slots=True, eq=False)
class SamplerSpec:
    """Which times the network is asked at, and what is made of its answers.

    Every sampler with a fixed schedule only ever adds multiples of the initial noise ``x``, of the network's outputs
    ``v_0, ..., v_{E-1}`` so far, and of noise ``xi_0, ..., xi_{K-1}`` drawn on the way. One row of numbers per
    evaluation says what the network's input is, a last row says what the sample is:

        input of evaluation i = table[i]  @ (x, v_0, ..., v_{E-1}, xi_0, ..., xi_{K-1})
        sample                = table[E]  @ (the same)

    Attributes:
        name: for messages and reports, such as ``heun``.
        times: per evaluation the numbers that the network gets as its time inputs: one, or two for networks of an
            average velocity, (t, t - r) or (t, r).
        table: [E + 1, 1 + E + K]; row i has zeros for outputs that do not exist yet.
        draws: K, how many noise tensors of the sample's shape the caller gives beside the initial one.
        relative_precision: of the table's numbers: that of float64 where they were computed, of float32 where they
            were read off a library that computes in float32.
        notes: what somebody who reads a report should know, such as a library's own exception at one step.

    Raises:
        UserError: no evaluation, sizes that do not fit each other, numbers that are not finite, or a row that uses
            an output before the network gave it.

    Source: Shaul et al., "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models".
    """

    name: str
    times: tuple[tuple[float, ...], ...]
    table: Table
    draws: int = 0
    relative_precision: float = float(numpy.finfo(numpy.float64).eps)
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        count = len(self.times)
        if count == 0:
            raise UserError(f"the sampler {self.name!r} evaluates the network 0 times", hint="ask for 1 step or more")
        if len({len(t) for t in self.times}) != 1:
            raise UserError(f"the sampler {self.name!r} gives the network one time at some steps and two at others")
        columns = 1 + count + self.draws
        if self.table.shape != (count + 1, columns):
            raise UserError(
                f"the table of {self.name!r} is {list(self.table.shape)}",
                why=f"{count} evaluations and {self.draws} draws of noise need [{count + 1}, {columns}]",
            )
        if not numpy.isfinite(self.table).all() or not numpy.isfinite(numpy.array(self.times)).all():
            raise UserError(
                f"the sampler {self.name!r} has numbers that are not finite: a step of its schedule divides by 0"
            )
        rows, outputs = numpy.nonzero(self.table[:, 1 : 1 + count])
        early = [(int(r), int(o)) for r, o in zip(rows, outputs, strict=True) if o >= r]
        if early:
            raise UserError(
                f"the table of {self.name!r} uses the network's output {early[0][1]} at evaluation {early[0][0]}",
                why="an output exists only after its evaluation",
            )
        self.table.setflags(write=False)

    @property
    def evaluations(self) -> int:
        """E: how often the network runs for one sample."""
        return len(self.times)

    def inputs(self, start: Table, outputs: Sequence[Table], noises: Sequence[Table] = ()) -> Table:
        """The network's next input, or the sample when all outputs are there, in float64.

        Args:
            start: x.
            outputs: what the network gave so far, each of the shape of x.
            noises: all K of them.
        """
        row = self.table[len(outputs)]
        drawn = row[1 + self.evaluations :]
        found: Table = row[0] * start
        for number, value in [*zip(row[1:], outputs, strict=False), *zip(drawn, noises, strict=True)]:
            found = found + number * value
        return found

    def with_notes(self, *notes: str) -> "SamplerSpec":
        """The same sampler, with more to say."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))
