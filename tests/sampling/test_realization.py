"""The smallest state of a table: what it computes, and how many tensors the loop carries."""

import numpy
import pytest

from flowopt.sampling import Realization, SamplerSpec, Trace, realize


def euler(steps: int, *, noisy: bool = False) -> SamplerSpec:
    """With an input scale and a start scale, as schedulers for variance exploding models have."""
    trace = Trace()
    x = trace.start * 14.6
    for i in range(steps):
        x = x + trace.evaluate(x / (1.5 + i), i / steps) / steps
        if noisy and i < steps - 1:
            x = x + 0.3 * trace.draw()
    return trace.finished("euler", x)


def heun(steps: int) -> SamplerSpec:
    trace = Trace()
    x, h = trace.start, 1 / steps
    for i in range(steps):
        slope = trace.evaluate(x, i * h)
        x = x + h / 2 * (slope + trace.evaluate(x + h * slope, (i + 1) * h))
    return trace.finished("heun", x)


def runge_kutta(steps: int) -> SamplerSpec:
    trace = Trace()
    x, h = trace.start, 1 / steps
    for i in range(steps):
        first = trace.evaluate(x, i * h)
        second = trace.evaluate(x + h / 2 * first, (i + 0.5) * h)
        third = trace.evaluate(x + h / 2 * second, (i + 0.5) * h)
        last = trace.evaluate(x + h * third, (i + 1) * h)
        x = x + h / 6 * (first + 2 * second + 2 * third + last)
    return trace.finished("rk4", x)


def adams_bashforth(steps: int) -> SamplerSpec:
    trace = Trace()
    x, before = trace.start, None
    for i in range(steps):
        slope = trace.evaluate(x, i / steps)
        x = x + (slope if before is None else 1.5 * slope - 0.5 * before) / steps
        before = slope
    return trace.finished("ab2", x)


def churned(steps: int) -> SamplerSpec:
    """Noise before the first evaluation, and two draws per step."""
    trace = Trace()
    x = trace.start
    for i in range(steps):
        x = x + 0.1 * trace.draw()
        x = x + 0.5 * trace.draw() - trace.evaluate(x, float(i)) / steps
    return trace.finished("churned", x)


def by_loop(loop: Realization, x: numpy.ndarray, noises: list[numpy.ndarray]) -> numpy.ndarray:
    """The sample of a network that computes something not linear from its input and the step's number."""
    state = [loop.start[k] * x for k in range(loop.rank)]
    for j, draw in enumerate(loop.start_draws):
        state = [s + loop.start_noise[k, j] * noises[draw] for k, s in enumerate(state)]
    for i in range(len(loop.gain)):
        output = network(state[0], i)
        carried = [sum(loop.carry[i, k, j] * s for j, s in enumerate(state)) for k in range(loop.rank)]
        state = [c + loop.gain[i, k] * output for k, c in enumerate(carried)]
        for j, draw in enumerate(loop.step_draws[i]):
            state = [s + loop.noise_gain[i, k, j] * noises[draw] for k, s in enumerate(state)]
    return state[0]


def by_table(spec: SamplerSpec, x: numpy.ndarray, noises: list[numpy.ndarray]) -> numpy.ndarray:
    outputs: list[numpy.ndarray] = []
    for i in range(spec.evaluations):
        outputs.append(network(spec.inputs(x, outputs, noises), i))
    return spec.inputs(x, outputs, noises)


def network(x: numpy.ndarray, step: int) -> numpy.ndarray:
    return numpy.tanh(1.7 * x + 0.3 * step) - 0.4 * numpy.sin(x)


SAMPLERS = {
    "euler": euler,
    "noisy euler": lambda steps: euler(steps, noisy=True),
    "heun": heun,
    "rk4": runge_kutta,
    "ab2": adams_bashforth,
    "churned": churned,
}


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_loop_computes_what_the_table_says(sampler: str, steps: int) -> None:
    spec = SAMPLERS[sampler](steps)
    loop = realize(spec)
    rng = numpy.random.default_rng(3)
    x, *noises = rng.standard_normal((1 + spec.draws, 7))
    numpy.testing.assert_allclose(by_loop(loop, x, noises), by_table(spec, x, noises), rtol=1e-9, atol=1e-11)
    assert loop.error < 1e-12


@pytest.mark.parametrize(
    ("sampler", "rank"), [("euler", 1), ("noisy euler", 1), ("heun", 2), ("ab2", 2), ("rk4", 3), ("churned", 1)]
)
def test_no_more_tensors_are_carried_than_the_sampler_needs(sampler: str, rank: int) -> None:
    assert realize(SAMPLERS[sampler](8)).rank == rank


def test_rounding_of_a_library_in_float32_adds_no_state() -> None:
    exact = adams_bashforth(8)
    rounded = SamplerSpec(
        "ab2", exact.times, exact.table.astype(numpy.float32).astype(float), relative_precision=1.2e-7
    )
    assert realize(rounded).rank == 2


def test_a_small_coefficient_that_matters_is_kept() -> None:
    table = heun(2).table.copy()
    table[4, 1] += 3e-7  # below the first tolerance of the rank
    spec = SamplerSpec("heun", heun(2).times, table)
    assert realize(spec).error < 1e-12


def test_a_sampler_that_returns_nothing_has_a_loop() -> None:
    trace = Trace()
    output = trace.evaluate(trace.start, 1.0)
    loop = realize(trace.finished("nothing", 0.0 * output))
    assert by_loop(loop, numpy.ones(3), []).tolist() == [0, 0, 0]


def test_a_thousand_steps_take_a_second() -> None:
    loop = realize(adams_bashforth(1000))
    assert loop.rank == 2
    assert loop.error < 1e-12
