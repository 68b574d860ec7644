"""The smallest state with which a sampler's table can be run step by step."""

from dataclasses import dataclass
from typing import final

import numpy

from flowopt.errors import InternalError
from flowopt.sampling.spec import SamplerSpec, Table

# Singular values below these parts of the largest count as zero, tried in order until the table comes out again.
# Tables read off a library in float32 carry its rounding as small singular values.
_RANK_TOLERANCES = (5e-6, 1e-6, 1e-7, 1e-9, 1e-11, 1e-13)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Realization:
    """A table as a loop that carries r tensors of the sample's shape.

        s           = start * x + start_noise @ xi[first]
        v_i         = network(s[0], times_i)
        s           = carry_i @ s + gain_i * v_i + noise_gain_i @ xi[draws_i]       for i = 0, ..., E-1
        sample      = s[0]

    The first tensor of the state is always what the network gets next, and in the end the sample.

    Attributes:
        start: [r].
        start_noise: [r, d], for the draws ``start_draws``.
        carry: [E, r, r].
        gain: [E, r].
        noise_gain: [E, r, m]: m is the largest number of draws that one step consumes.
        step_draws: [E, m], which draws these are; a step that consumes fewer repeats one with a gain of zero.
        start_draws: [d].
        error: the largest difference between the table and what the loop computes, relative to each row's largest
            number.
    """

    start: Table
    start_noise: Table
    carry: Table
    gain: Table
    noise_gain: Table
    step_draws: tuple[tuple[int, ...], ...]
    start_draws: tuple[int, ...]
    error: float

    @property
    def rank(self) -> int:
        """r: how many tensors of the sample's shape the loop carries."""
        return len(self.start)


def realize(spec: SamplerSpec) -> Realization:
    """The smallest state that reproduces a sampler's table within its precision.

    State i is a basis of what later rows read from the past: the next input itself, and the leading right singular
    vectors of the rest, for each i (the factorisation of Hankel blocks of a time-varying system). Steps that need
    fewer tensors are padded with zeros.

    Raises:
        InternalError: no state reproduces the table.

    Source: Dewilde and van der Veen, "Time-Varying Systems and Computations", chapter 3.
    """
    allowed = max(4 * spec.relative_precision, 1e-12)
    for tolerance in _RANK_TOLERANCES:
        found = _realized(spec, tolerance)
        if found.error <= allowed:
            return found
    raise InternalError(
        f"no state reproduces the table of {spec.name!r} within {allowed:.1e}; the last: {found.error:.1e}"
    )


def _realized(spec: SamplerSpec, tolerance: float) -> Realization:
    count = spec.evaluations
    entries = _entries(spec)
    bases: list[Table] = []
    later = numpy.zeros((0, spec.table.shape[1]))
    for i in reversed(range(count + 1)):
        known = _known(spec, entries, i)
        basis, later = _basis(numpy.where(known, spec.table[i], 0.0), numpy.where(known, later, 0.0), tolerance)
        bases.insert(0, basis)
    rank = max(len(basis) for basis in bases)
    bases = [numpy.vstack([basis, numpy.zeros((rank - len(basis), basis.shape[1]))]) for basis in bases]
    new = [[k for k, entry in enumerate(entries) if entry == i + 1] for i in range(count)]
    width = max(len(draws) for draws in new)
    carry, gain = numpy.zeros((count, rank, rank)), numpy.zeros((count, rank))
    noise_gain = numpy.zeros((count, rank, width))
    for i in range(count):
        known = _known(spec, entries, i)
        carry[i] = bases[i + 1][:, known] @ numpy.linalg.pinv(bases[i][:, known], rcond=1e-14)
        gain[i] = bases[i + 1][:, 1 + i]
        noise_gain[i, :, : len(new[i])] = bases[i + 1][:, [1 + count + k for k in new[i]]]
    first = [k for k, entry in enumerate(entries) if entry == 0]
    rough = Realization(
        start=bases[0][:, 0],
        start_noise=bases[0][:, [1 + count + k for k in first]],
        carry=_snapped(carry),
        gain=gain,
        noise_gain=noise_gain,
        step_draws=tuple(tuple(draws + [0] * (width - len(draws))) for draws in new),
        start_draws=tuple(first),
        error=0.0,
    )
    return Realization(
        rough.start,
        rough.start_noise,
        rough.carry,
        rough.gain,
        rough.noise_gain,
        rough.step_draws,
        rough.start_draws,
        error=_error(spec, rough, new),
    )


def _entries(spec: SamplerSpec) -> list[int]:
    """For each draw the first row that reads it; one that no row reads enters at the end, with a gain of zero."""
    used = spec.table[:, 1 + spec.evaluations :] != 0
    return [int(numpy.argmax(column)) if column.any() else spec.evaluations for column in used.T]


def _known(spec: SamplerSpec, entries: list[int], row: int) -> Table:
    """Which columns exist when a row is computed: a mask over the table's columns."""
    outputs = [i < row for i in range(spec.evaluations)]
    return numpy.array([True, *outputs, *(entry <= row for entry in entries)])


def _basis(row: Table, later: Table, tolerance: float) -> tuple[Table, Table]:
    """What the state consists of when a row is computed.

    Args:
        row: [columns], that row on the columns that exist by then.
        later: [rank, columns], rows that span what all later rows read from those columns, with their weights.
        tolerance: relative, below which a direction counts as none.

    Returns:
        Rows that span both, the first of which is the row itself, and both compressed for the row before.
    """
    first = row[None]
    norm = float(numpy.square(first).sum())
    rest = later - (later @ first.T / norm) @ first if norm > 0 else later
    both = numpy.vstack([first, later])
    values, vectors = _singular(both)
    kept = values > tolerance * values[0]
    compressed = vectors[kept] * values[kept][:, None]
    inner, directions = _singular(rest)
    kept = inner > tolerance * values[0]
    return numpy.vstack([first, directions[kept] * numpy.sqrt(inner[kept])[:, None]]), compressed


def _singular(rows: Table) -> tuple[Table, Table]:
    """Singular values and right singular vectors, whose signs would be arbitrary: their peaks are positive."""
    if not len(rows):
        return numpy.zeros(0), rows
    _, values, vectors = numpy.linalg.svd(rows, full_matrices=False)
    peaks = vectors[numpy.arange(len(vectors)), numpy.abs(vectors).argmax(axis=1)]
    return values, vectors * numpy.where(peaks < 0, -1.0, 1.0)[:, None]


def _snapped(carry: Table) -> Table:
    """Numbers that are 0 or 1 but for rounding in float64, made so: a product with them needs no operator."""
    for exact in (0.0, 1.0):
        carry = numpy.where(numpy.abs(carry - exact) < 1e-13, exact, carry)
    return carry


def _error(spec: SamplerSpec, loop: Realization, new: list[list[int]]) -> float:
    """Run the loop on the columns themselves, and compare with the table."""
    count, columns = spec.evaluations, spec.table.shape[1]
    units = numpy.eye(columns)
    state = numpy.outer(loop.start, units[0])
    for j, k in enumerate(loop.start_draws):
        state = state + numpy.outer(loop.start_noise[:, j], units[1 + count + k])
    # A sampler may return exactly nothing: its last row is compared on the scale of the others.
    least = 1e-6 * float(numpy.abs(spec.table).max()) or 1.0
    worst = 0.0
    for i in range(count + 1):
        row = spec.table[i]
        worst = max(worst, float(numpy.abs(state[0] - row).max()) / max(float(numpy.abs(row).max()), least))
        if i == count:
            break
        state = loop.carry[i] @ state + numpy.outer(loop.gain[i], units[1 + i])
        for j, k in enumerate(new[i]):
            state = state + numpy.outer(loop.noise_gain[i, :, j], units[1 + count + k])
    return worst
