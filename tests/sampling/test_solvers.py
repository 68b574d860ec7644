"""Tables against the methods as loops, written here by themselves, in float64."""

import math
from collections.abc import Callable

import numpy
import pytest

from flowopt.sampling import make_sampler
from flowopt.sampling.spec import Table
from tests.sampling.fields import run, toy

TIMES = [1.0, 0.83, 0.6, 0.41, 0.13, 0.0]
SCHEDULE = ",".join(map(str, TIMES))
X = numpy.random.default_rng(5).standard_normal(7)
NOISES = list(numpy.random.default_rng(6).standard_normal((12, 7)))
Field = Callable[[Table, float], Table]
PAIRS = list(zip(TIMES, TIMES[1:], strict=False))


def told(x: Table, time: float) -> Table:
    """The toy network for times of 0 to 1000."""
    return toy(x, time / 1000)


def euler() -> Table:
    x = X
    for t, s in PAIRS:
        x = x + (s - t) * toy(x, t)
    return x


def heun() -> Table:
    x = X
    for t, s in PAIRS:
        d = toy(x, t)
        if s > 0:
            d = (d + toy(x + (s - t) * d, s)) / 2
        x = x + (s - t) * d
    return x


def midpoint() -> Table:
    """As RF-Solver writes it, with a derivative of the velocity."""
    x = X
    for t, s in PAIRS:
        h = s - t
        v = toy(x, t)
        derivative = (toy(x + h / 2 * v, t + h / 2) - v) / (h / 2)
        x = x + h * v + h**2 / 2 * derivative
    return x


def fireflow() -> Table:
    x, slope = X, None
    for t, s in PAIRS:
        h = s - t
        slope = toy(x, t) if slope is None else slope
        slope = toy(x + h / 2 * slope, t + h / 2)
        x = x + h * slope
    return x


def rk4() -> Table:
    x = X
    for t, s in PAIRS:
        h = s - t
        k1 = toy(x, t)
        k2 = toy(x + h / 2 * k1, t + h / 2)
        k3 = toy(x + h / 2 * k2, t + h / 2)
        k4 = toy(x + h * k3, s)
        x = x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6
    return x


def ab2() -> Table:
    """The line through the last two slopes, integrated over the step."""
    x, last = X, None
    for t, s in PAIRS:
        v = toy(x, t)
        if last is None:
            x = x + (s - t) * v
        else:
            before, earlier = last
            rise = (v - earlier) / (t - before)
            x = x + v * (s - t) + rise * (s - t) ** 2 / 2
        last = t, v
    return x


def pseudo_corrector() -> Table:
    x = X
    carried = toy(x, TIMES[0])
    for t, s in PAIRS:
        ahead = toy(x + (s - t) * carried, s)
        x = x + (s - t) / 2 * (carried + ahead)
        carried = ahead
    return x


def lam(t: float) -> float:
    return math.inf if t == 0 else -math.inf if t == 1 else math.log((1 - t) / t)


def dpmpp_2m() -> Table:
    x, answers = X, []
    for i, (t, s) in enumerate(PAIRS):
        answers.append(data := x - t * toy(x, t))
        if s == 0:
            x = data
            continue
        h = lam(s) - lam(t)
        used = data
        if i > 1:  # the first step starts at lambda = -inf
            used = data + (data - answers[-2]) * h / (lam(t) - lam(TIMES[i - 1])) / 2
        x = s / t * x - (1 - s) * (math.exp(-h) - 1) * used
    return x


def unipc() -> Table:
    """As in diffusers: solve for the corrector's weights with a matrix."""
    x, start = X, X
    answers: list[Table] = []
    for i, (t, s) in enumerate(PAIRS):
        answers.append(x - t * toy(x, t))
        if i > 0:
            u = TIMES[i - 1]
            h = lam(t) - lam(u)
            b = math.exp(-h) - 1
            phi = b / -h - 1 if math.isfinite(h) else -1.0
            if i == 1:
                correction = 0.5 * (answers[1] - answers[0])
            elif i == 2:  # the answer before is at lambda = -inf: its weight is 0
                correction = phi / b * (answers[2] - answers[1])
            else:
                r = (lam(TIMES[i - 2]) - lam(u)) / h
                rho = numpy.linalg.solve(
                    numpy.array([[1, 1], [r, 1]]), numpy.array([phi / b, (phi / -h - 0.5) * 2 / b])
                )
                correction = rho[0] * (answers[-3] - answers[-2]) / r + rho[1] * (answers[-1] - answers[-2])
            x = t / u * start - (1 - t) * b * (answers[-2] + correction)
        start, data = x, answers[-1]
        if s == 0:
            x = data
            continue
        h = lam(s) - lam(t)
        used = data
        if i > 1:
            r = (lam(TIMES[i - 1]) - lam(t)) / h
            used = data + 0.5 * (answers[-2] - data) / r
        x = s / t * x - (1 - s) * (math.exp(-h) - 1) * used
    return x


def rfpp_new() -> Table:
    x = X
    for t, s in PAIRS:
        x = (1 - s) * (x - t * toy(x, t)) + s * X
    return x


LOOPS = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rf-solver": midpoint,
    "fireflow": fireflow,
    "rk4": rk4,
    "ab2": ab2,
    "pseudo-corrector": pseudo_corrector,
    "ddim": euler,  # on the linear path they are the same
    "dpmpp-2m": dpmpp_2m,
    "unipc": unipc,
    "rfpp-new": rfpp_new,
}


@pytest.mark.parametrize("solver", LOOPS)
def test_the_table_is_the_method(solver: str) -> None:
    ends = solver in ("rk4", "pseudo-corrector")
    spec = make_sampler(solver, schedule=SCHEDULE, asks_at_end=ends)
    numpy.testing.assert_allclose(run(spec, told, X), LOOPS[solver](), rtol=1e-12, atol=1e-12)


def test_the_golden_weights_of_dpmpp_and_unipc_come_out() -> None:
    """How much of each output is in the sample, read off diffusers 0.42 with flow_shift=3, which rounds its times."""
    raw = numpy.linspace(0, 0.999, 5)[:0:-1]
    sigmas = [*(3 * raw / (1 + 2 * raw)), 0.0]
    found = make_sampler("dpmpp-2m", schedule=sigmas, first_time=sigmas[0]).table[-1, 1:]
    numpy.testing.assert_allclose(found, [-0.083512, -0.041399, -0.375089, -0.499667], atol=2e-6)
    sigmas = [0.999999, 0.90012, 0.750375, 0.500999, 0.0]
    found = make_sampler("unipc", schedule=sigmas, first_time=sigmas[0]).table[-1, 1:]
    # lambda at sigma = 0.999999 is known to no more digits.
    numpy.testing.assert_allclose(found, [-0.049674, -0.02744, -0.421886, -0.500999], atol=2e-5)


@pytest.mark.parametrize("steps", [14, 15])
def test_few_steps_end_in_one_of_order_1(steps: int) -> None:
    """Where the path does not end in sigma = 0; as diffusers' lower_order_final."""
    asked = make_sampler("dpmpp-2m", steps, last_time=0.01)
    plain = make_sampler("dpmpp-2m", steps, last_time=0.01, lower_order_final=False)
    assert (asked.table[-1] == plain.table[-1]).all() == (steps == 15)


def abar() -> Table:
    betas = numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return numpy.cumprod(1 - betas)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_of_a_noise_prediction(eta: float) -> None:
    """Equations 12 and 16 of the paper, with the last abar that of training step 0."""
    spec = make_sampler("ddim", 5, convention="stable-diffusion", eta=eta)
    products, x, noises = abar(), X, iter(NOISES)
    times = [999, 799, 599, 399, 199]
    for i, t in enumerate(times):
        a = products[t]
        b = products[times[i + 1]] if i < 4 else products[0]
        noise = told(x, t)
        data = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        s = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * data + math.sqrt(1 - b - s**2) * noise
        if eta:
            x = x + s * next(noises)
    assert spec.draws == (5 if eta else 0)
    numpy.testing.assert_allclose(run(spec, told, X, NOISES[: spec.draws]), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_ode_methods_of_a_noise_prediction_step_in_sigma_over_alpha(solver: str) -> None:
    spec = make_sampler(solver, 5, convention="stable-diffusion")
    products = abar()
    times = [999, 799, 599, 399, 199]
    alphas = [math.sqrt(products[t]) for t in [*times, 0]]
    ratios = [math.sqrt(1 - products[t]) / math.sqrt(products[t]) for t in [*times, 0]]
    y = X / alphas[0]
    for i, t in enumerate(times):
        h = ratios[i + 1] - ratios[i]
        noise = told(y * alphas[i], t)
        if solver == "heun" and i < 4:
            noise = (noise + told((y + h * noise) * alphas[i + 1], times[i + 1])) / 2
        y = y + h * noise
    numpy.testing.assert_allclose(run(spec, told, X), y * alphas[-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("convention", ["edm", "pfgmpp"])
@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_the_sampler_of_edm(convention: str, churn: float) -> None:
    spec = make_sampler("edm", 6, convention=convention, churn=churn, churn_min=0.05, churn_max=50.0, churn_noise=1.007)
    ramp = numpy.arange(6) / 5
    sigmas = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7), 0.0]
    x, noises = X * (80.0 if convention == "edm" else 1.0), iter(NOISES)
    drawn = 0
    for i, (t, s) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        gamma = min(churn / 6, math.sqrt(2) - 1) if 0.05 <= t <= 50 else 0.0
        raised = t + gamma * t
        if gamma:
            x = x + math.sqrt(raised**2 - t**2) * 1.007 * next(noises)
            drawn += 1
        d = (x - toy(x, raised)) / raised
        ahead = x + (s - raised) * d
        if i < 5:
            ahead = x + (s - raised) * (d + (ahead - toy(ahead, s)) / s) / 2
        x = ahead
    assert spec.draws == drawn
    numpy.testing.assert_allclose(run(spec, toy, X, NOISES[:drawn]), x, rtol=1e-11, atol=1e-11)


FORMS: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 0.8,
    "sbdm": lambda t: 0.8 * ((1 - t) ** 2 / t + (1 - t)),
    "sigma": lambda t: 0.8 * (1 - t),
    "linear": lambda t: 0.8 * (1 - t),
    "decreasing": lambda t: 0.25 * (0.8 * math.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda t: 0.8 * math.sin(math.pi * t) ** 2,
}


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_the_sde_of_sit(form: str, last_step: str) -> None:
    """linspace(t0, 1 - 0.04, 6), and a last step that draws nothing."""
    first = 0.02 if form == "sbdm" else 0.0
    spec = make_sampler("sde", 6, convention="sit", form=form, norm=0.8, last_step=last_step, first_time=first)
    grid = numpy.linspace(first, 1.0 if last_step == "none" else 0.96, 6)
    x, h, noises, drawn = X, grid[1] - grid[0], iter(NOISES), 0

    def score(x: Table, v: Table, t: float) -> Table:
        return (t * v - x) / ((1 - t) ** 2 + t * (1 - t))

    for t in grid[:-1]:
        v, w = toy(x, t), FORMS[form](t)
        x = x + (v + w * score(x, v, t)) * h
        if w:
            x = x + math.sqrt(2 * w * h) * next(noises)
            drawn += 1
    v, w = toy(x, grid[-1]), FORMS[form](grid[-1])
    if last_step == "mean":
        x = x + (v + w * score(x, v, 0.96)) * 0.04
    elif last_step == "euler":
        x = x + v * 0.04
    elif last_step == "tweedie":
        x = x / 0.96 + 0.04**2 / 0.96 * score(x, v, 0.96)
    assert spec.draws == drawn
    numpy.testing.assert_allclose(run(spec, toy, X, NOISES[:drawn]), x, rtol=1e-11, atol=1e-11)


def test_the_sde_of_other_conventions_is_that_of_sit() -> None:
    """Time the other way round, and a velocity with the other sign."""
    of_sit = make_sampler("sde:decreasing", 6, convention="sit")
    other = make_sampler("sde:decreasing", 5, time_scale=1.0, first_time=1.0)
    numpy.testing.assert_allclose(
        run(other, lambda x, t: -toy(x, 1 - t), X, NOISES[:5]), run(of_sit, toy, X, NOISES[:5]), rtol=1e-12, atol=1e-12
    )


def test_meanflow_tells_the_network_the_time_and_the_interval() -> None:
    spec = make_sampler("meanflow", 4, convention="meanflow")
    assert spec.times == ((1.0, 0.25), (0.75, 0.25), (0.5, 0.25), (0.25, 0.25))
    assert make_sampler("meanflow", 1, convention="meanflow", second_time="end").times == ((1.0, 0.0),)

    def network(x: Table, t: float, interval: float) -> Table:
        return toy(x, t) * (1 + interval)

    x = X
    for t in (1.0, 0.75, 0.5, 0.25):
        x = x - 0.25 * network(x, t, 0.25)
    numpy.testing.assert_allclose(run(spec, network, X), x, rtol=1e-12, atol=1e-12)
