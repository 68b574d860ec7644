"""The row of solvers: how fast the error falls as steps are made smaller."""

from functools import cache

import numpy

from flowopt.sampling import make_sampler
from flowopt.sampling.spec import Table
from tests.goals.row import Measured, Row
from tests.sampling.fields import PAIR, followed, run

X = numpy.linspace(-2.3, 2.5, 24)
TOLERANCE = 0.2
ORDERS = {
    "euler": 1,
    "heun": 2,
    "midpoint": 2,
    "pseudo-corrector": 2,
    "ab2": 2,
    "dpmpp-2m": 2,
    "rk4": 4,
}
_STEPS = (40, 80, 160, 320)
_FIRST, _LAST = 0.02, 0.98


@cache
def _reference() -> Table:
    return followed(PAIR.velocity, X, numpy.linspace(_FIRST, _LAST, 5_001))


def fitted_order(solver: str) -> float:
    """Minus the slope of log error over log steps, on the mixture of two normal distributions.

    From t = 0.02 to 0.98, since lambda, in which DPM-Solver++ extrapolates, is infinite at 0 and 1.
    """
    errors = []
    for steps in _STEPS:
        spec = make_sampler(solver, steps, convention="flowturbo", first_time=_FIRST, last_time=_LAST)
        errors.append(float(numpy.abs(run(spec, PAIR.velocity, X) - _reference()).mean()))
    return -float(numpy.polyfit(numpy.log(_STEPS), numpy.log(errors), 1)[0])


def _orders() -> Measured:
    found = {solver: fitted_order(solver) for solver in ORDERS}
    short = tuple(
        f"{solver}: order {found[solver]:.2f}, not {order}"
        for solver, order in ORDERS.items()
        if abs(found[solver] - order) > TOLERANCE
    )
    return Measured(", ".join(f"{solver} {order:.2f}" for solver, order in found.items()), not short, short)


ROWS = (Row("sampler.orders", "Euler 1, RK4 4, the others 2, within 0.2", _orders),)
