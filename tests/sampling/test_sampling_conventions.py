"""Conventions mean the same flow: given what each network would say, all arrive at the same data."""

import dataclasses
import math
from collections.abc import Callable

import numpy
import pytest

from flowopt.sampling import CONVENTIONS, convention_named, make_sampler
from flowopt.sampling.paths import Interpolation, PathName
from flowopt.sampling.spec import Table
from tests.sampling.fields import GAUSSIAN, PAIR, gaussian_flow, run

X = numpy.linspace(-2.0, 2.2, 9)


def forward(clean: Callable[[float], float]) -> Callable[[Table, float], Table]:
    """A network of the velocity data - noise, from the time that it is told."""
    return lambda x, told: GAUSSIAN.velocity(x, clean(told))


def backward(clean: Callable[[float], float]) -> Callable[[Table, float], Table]:
    """A network of the velocity noise - data."""
    return lambda x, told: -GAUSSIAN.velocity(x, clean(told))


def of_lfm(x: Table, t: float) -> Table:
    data, noise = GAUSSIAN.expected(x, 1 - t, 1e-5 + (1 - 1e-5) * t)
    return (1 - 1e-5) * noise - data


def steps_of(betas: Table) -> Callable[[Table, float], Table]:
    products = numpy.cumprod(1 - betas)

    def network(x: Table, step: float) -> Table:
        abar = float(products[int(step)])
        return GAUSSIAN.expected(x, math.sqrt(abar), math.sqrt(1 - abar))[1]

    return network


def denoiser(x: Table, sigma: float) -> Table:
    return GAUSSIAN.expected(x, 1.0, sigma)[0]


# The clean time, 0 at noise and 1 at data, from what each network is told.
NETWORKS = {
    "rectified-flow": forward(lambda told: told / 999),
    "instaflow": forward(lambda told: 1 - told / 1000),
    "boss": forward(lambda told: (told / 999 - 1e-3) / (1 - 1e-3)),
    "rfpp": backward(lambda told: 1 - told),
    "sit": forward(lambda told: told),
    "flowturbo": forward(lambda told: told),
    "lfm": of_lfm,
    "diffusers-flow": backward(lambda told: 1 - told / 1000),
    "ddpm": steps_of(numpy.linspace(1e-4, 0.02, 1000)),
    "stable-diffusion": steps_of(numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    "edm": denoiser,
    "pfgmpp": lambda x, sigma: denoiser(x, sigma),
}
# How far each ends from the flow of pure noise to clean data, beside the error of 100 steps: an eps of 1e-3 at the
# start, 0.03 of noise left in the data, a last sigma / alpha of 14.6 at noise (stable-diffusion).
CLOSE = {"rectified-flow": 2e-3, "stable-diffusion": 0.15, "ddpm": 0.02, "edm": 0.02, "pfgmpp": 0.02}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convention_leads_to_the_same_data(name: str) -> None:
    start = 80 * X if name == "pfgmpp" else X
    found = run(make_sampler("heun", 100, convention=name), NETWORKS[name], start)
    numpy.testing.assert_allclose(found, gaussian_flow(X, 1.0), atol=CLOSE.get(name, 4e-4))


def test_every_preset_has_such_a_network() -> None:
    """meanflow's is in the tests of methods: an average velocity."""
    assert NETWORKS.keys() | {"meanflow"} == CONVENTIONS.keys()


def exact(x: Table, alpha: float, sigma: float, kind: str) -> Table:
    data, noise = PAIR.expected(x, alpha, sigma)
    if kind == "v-prediction":
        return alpha * noise - sigma * data
    return noise if kind == "noise" else data


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "ddim:0.5", "dpmpp-2m", "unipc", "ab2"])
@pytest.mark.parametrize("kind", ["sample", "v-prediction"])
def test_predictions_of_training_steps_are_converted(kind: str, solver: str) -> None:
    """The same network, saying the same in other words."""
    path = CONVENTIONS["ddpm"].make_path()
    noises = list(numpy.random.default_rng(2).standard_normal((6, 9)))

    def sample(prediction: str) -> Table:
        spec = make_sampler(solver, 6, convention="ddpm", prediction=prediction)

        def network(x: Table, t: float) -> Table:
            return exact(x, path.alpha(t), path.sigma(t), prediction)

        return run(spec, network, X, noises[: spec.draws])

    numpy.testing.assert_allclose(sample(kind), sample("noise"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["noise", "sample"])
@pytest.mark.parametrize(
    ("path", "solver"),
    [
        *[(path, solver) for path in ("linear", "gvp") for solver in ("euler", "rk4", "ddim", "dpmpp-2m", "sde")],
        ("variance-exploding", "edm"),
    ],
)
def test_predictions_of_flows_are_converted(path: PathName, solver: str, kind: str) -> None:
    noises = list(numpy.random.default_rng(2).standard_normal((6, 9)))
    own = CONVENTIONS["edm"]
    if path != "variance-exploding":
        own = dataclasses.replace(CONVENTIONS["flowturbo"], path=path, first_time=0.01, last_time=0.99)

    def sample(prediction: str) -> Table:
        spec = make_sampler(solver, 6, convention=own, prediction=prediction)

        def network(x: Table, t: float) -> Table:
            alpha, sigma = (t, 1 - t) if path == "linear" else (1.0, t)
            if path == "gvp":
                alpha, sigma = math.sin(math.pi / 2 * t), math.cos(math.pi / 2 * t)
            data, noise = PAIR.expected(x, alpha, sigma)
            if prediction == "velocity":
                return data - noise if path == "linear" else math.pi / 2 * (sigma * data - alpha * noise)
            return noise if prediction == "noise" else data

        return run(spec, network, X, noises[: spec.draws])

    reference = "velocity" if path != "variance-exploding" else "sample" if kind == "noise" else "noise"
    numpy.testing.assert_allclose(sample(kind), sample(reference), rtol=1e-9, atol=1e-9)


def test_the_bare_network_of_rfpp_is_its_wrapper_folded_into_the_table() -> None:
    """x_edm = x / (1-t), sigma = t / (1-t), v = (x - D) / t."""

    def bare(x: Table, noise: float) -> Table:
        return numpy.tanh(1.3 * x + noise)

    def wrapped(x: Table, t: float) -> Table:
        scaled, sigma = x / (1 - t), t / (1 - t)
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        data = skip * scaled + out * bare(scaled / math.sqrt(sigma**2 + 0.25), math.log(sigma) / 4)
        return (x - data) / t

    own = convention_named("rfpp", prediction="preconditioned", time_rule="quarter-log-ratio")
    for solver in ("euler", "heun", "rfpp-new"):
        folded = make_sampler(solver, 5, convention=own)
        plain = make_sampler(solver, 5, convention="rfpp")
        # At t = 1 - 1e-5 the wrapper multiplies by 1e5.
        numpy.testing.assert_allclose(run(folded, bare, X), run(plain, wrapped, X), rtol=1e-9, atol=1e-9)


def test_the_trailing_steps_of_stable_diffusion_have_the_products_on_record() -> None:
    path = CONVENTIONS["stable-diffusion"].make_path()
    found = [path.alpha(t) ** 2 for t in (999, 749, 499, 249, -1)]
    numpy.testing.assert_allclose(found, [0.00466, 0.056623, 0.277669, 0.675432, 0.99915], atol=6e-6)


@pytest.mark.parametrize("name", ["ddpm", "stable-diffusion"])
def test_times_between_training_steps_are_found_again(name: str) -> None:
    path = CONVENTIONS[name].make_path()
    for t in (0.0, 0.25, 1.0, 17.5, 499.0, 998.75, 999.0):
        found = path.time_of(path.clock(t))
        assert found is not None
        assert abs(found - t) < 1e-9
    assert path.time_of(path.clock(0.0) / 2) is None
    assert path.time_of(path.clock(999.0) * 2) is None


@pytest.mark.parametrize(
    "path",
    [
        Interpolation(0.0, 1.0),
        Interpolation(1.0, 0.0, least_sigma=1e-5),
        Interpolation(1.0, 0.0, is_trigonometric=True),
    ],
)
def test_rates_of_a_path_are_its_derivatives(path: Interpolation) -> None:
    h = 1e-6
    for t in (0.2, 0.7):
        wanted = [(part(t + h) - part(t - h)) / (2 * h) for part in (path.alpha, path.sigma)]
        numpy.testing.assert_allclose(path.rates(t), wanted, rtol=1e-8)


def test_a_number_that_others_follow_from_need_not_be_said_twice() -> None:
    assert make_sampler("ddim", 4, convention="ddpm", train_steps=500).times[0] == (499.0,)
    assert make_sampler("edm", 4, convention="edm", first_time=157.0).times[0] == (157.0,)
