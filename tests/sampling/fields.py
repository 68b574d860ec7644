"""Velocity fields and predictions that are known exactly, and tables run on them in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from flowopt.sampling import SamplerSpec
from flowopt.sampling.spec import Table

Field = Callable[[Table, float], Table]
Network = Callable[..., Table]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Data that is one number, of equally probable normal distributions."""

    means: tuple[float, ...]
    deviation: float

    def expected(self, x: Table, alpha: float, sigma: float) -> tuple[Table, Table]:
        """Data and noise that are expected in x = alpha data + sigma noise."""
        variance = alpha**2 * self.deviation**2 + sigma**2
        offsets = numpy.stack([x - alpha * mean for mean in self.means])
        exponents = -(offsets**2) / (2 * variance)
        weights = numpy.exp(exponents - exponents.max(axis=0))
        weights = weights / weights.sum(axis=0)
        means = numpy.array(self.means).reshape(-1, *[1] * x.ndim)
        data = (weights * (means + alpha * self.deviation**2 / variance * offsets)).sum(axis=0)
        noise = (weights * (sigma / variance * offsets)).sum(axis=0)
        return data, noise

    def velocity(self, x: Table, t: float) -> Table:
        """dx/dt of x = t data + (1 - t) noise."""
        data, noise = self.expected(x, t, 1 - t)
        return data - noise


GAUSSIAN = Mixture((1.5,), 0.5)
PAIR = Mixture((-2.0, 2.0), 0.3)


def gaussian_flow(x: Table, t: float) -> Table:
    """Where the flow of GAUSSIAN takes pure noise x until t: exact."""
    return t * 1.5 + numpy.sqrt((1 - t) ** 2 + t**2 * 0.25) * x


def point_mass(x: Table, t: float) -> Table:
    """All data is 0.7."""
    return (0.7 - x) / (1 - t)


def toy(x: Table, t: float) -> Table:
    """A network that is neither linear nor smooth in a helpful way."""
    return numpy.tanh(1.7 * x + numpy.sin(3 * t)) - 0.4 * numpy.sin(x * (1 + t))


def run(spec: SamplerSpec, network: Network, x: Table, noises: Sequence[Table] = ()) -> Table:
    """The sample."""
    return trajectory(spec, network, x, noises)[-1]


def trajectory(spec: SamplerSpec, network: Network, x: Table, noises: Sequence[Table] = ()) -> list[Table]:
    """What the network was asked at, and the sample."""
    known = numpy.zeros((spec.table.shape[1], *x.shape))
    known[0] = x
    known[1 + spec.evaluations :] = numpy.array(noises).reshape(spec.draws, *x.shape)
    asked: list[Table] = []
    for i, times in enumerate(spec.times):
        asked.append(numpy.tensordot(spec.table[i], known, axes=1))
        known[1 + i] = network(asked[-1], *times)
    return [*asked, numpy.tensordot(spec.table[-1], known, axes=1)]


def straightness(path: Sequence[Table]) -> float:
    """mean ((x_{i+1} - x_i) N - (x_N - x_0))^2: 0 where one Euler step is exact."""
    count = len(path) - 1
    whole = path[-1] - path[0]
    return float(numpy.mean([((b - a) * count - whole) ** 2 for a, b in zip(path, path[1:], strict=False)]))


def followed(field: Field, x: Table, times: Table) -> Table:
    """The end of a flow, by many steps of the classic Runge-Kutta method."""
    for t, after in zip(times, times[1:], strict=False):
        h = after - t
        first = field(x, t)
        second = field(x + h / 2 * first, t + h / 2)
        third = field(x + h / 2 * second, t + h / 2)
        x = x + h / 6 * (first + 2 * second + 2 * third + field(x + h * third, after))
    return x
