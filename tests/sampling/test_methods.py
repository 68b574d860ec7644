"""What methods promise, on fields that are known exactly."""

import numpy
import pytest

from flowopt.errors import UserError
from flowopt.sampling import make_sampler, realize
from flowopt.sampling.spec import Table
from tests.goals.orders import ORDERS, TOLERANCE, fitted_order
from tests.sampling.fields import GAUSSIAN, PAIR, gaussian_flow, point_mass, run, straightness, toy, trajectory

X = numpy.random.default_rng(7).standard_normal(50)
ODE_SOLVERS = ("euler", "heun", "midpoint", "fireflow", "rk4", "ab2", "pseudo-corrector", "ddim", "dpmpp-2m", "unipc")
STEPS = [1, 2, 3, 8, 30]


def of_rectified_flow(x: Table, told: float) -> Table:
    return GAUSSIAN.velocity(x, told / 999)


def forwards(solver: str, steps: int) -> Table:
    return run(make_sampler(solver, steps, convention="flowturbo"), GAUSSIAN.velocity, X)


@pytest.mark.parametrize("solver", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(solver: str) -> None:
    assert abs(fitted_order(solver) - ORDERS[solver]) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
def test_steps_of_rectified_flow_reach_over_its_grid(steps: int) -> None:
    """Steps of 1/N from t = 0.001 add the whole of a constant velocity; the true differences would add 0.999 of it."""
    spec = make_sampler("euler", steps, convention="rectified-flow")
    numpy.testing.assert_allclose(run(spec, lambda x, t: 0 * x + 2.0, X), X + 2.0, rtol=1e-13)
    numpy.testing.assert_allclose([t for (t,) in spec.times][0], 0.999, rtol=1e-12)
    mended = make_sampler("euler", steps, convention="rectified-flow", steps_cover_path=False)
    numpy.testing.assert_allclose(run(mended, lambda x, t: 0 * x + 2.0, X), X + 2.0 * 0.999, rtol=1e-13)


@pytest.mark.parametrize(("steps", "most"), [(1, 5e-3), (10, 1.5e-3), (40, 1.5e-3)])
def test_the_quirk_of_rectified_flow_is_small_but_there(steps: int, most: float) -> None:
    quirk = run(make_sampler("euler", steps, convention="rectified-flow"), of_rectified_flow, X)
    difference = float(numpy.abs(quirk - forwards("euler", steps)).max())
    assert 1e-5 < difference < most


@pytest.mark.parametrize("steps", STEPS)
def test_euler_reaches_a_point_mass_in_any_number_of_steps(steps: int) -> None:
    spec = make_sampler("euler", steps, convention="flowturbo")
    numpy.testing.assert_allclose(run(spec, point_mass, X), 0.7, rtol=1e-12)


def test_the_error_of_euler_halves_when_steps_double() -> None:
    exact = gaussian_flow(X, 1.0)
    errors = [float(numpy.abs(forwards("euler", steps) - exact).mean()) for steps in (40, 80, 160)]
    numpy.testing.assert_allclose(
        [errors[0] / errors[1], errors[1] / errors[2]], 2.0, atol=0.1
    )  # the next order is still seen at 40 steps


def test_a_translation_is_straight_and_the_flow_to_a_normal_distribution_is_not() -> None:
    spec = make_sampler("euler", 20, convention="flowturbo")
    assert straightness(trajectory(spec, lambda x, t: 0 * x + 2.0, X)) < 1e-12
    assert straightness(trajectory(spec, GAUSSIAN.velocity, X)) > 1e-3


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", ["uniform", "shift:3"])
@pytest.mark.parametrize("solver", [*ODE_SOLVERS, "rfpp-new"])
def test_a_constant_velocity_is_integrated_exactly(solver: str, schedule: str, steps: int) -> None:
    """The weights of all outputs add up to the time that passes, and the start is kept whole."""
    spec = make_sampler(solver, steps, schedule)
    if solver == "rfpp-new":  # takes the noise from the start, so only velocities that point to one datum
        assert abs(run(spec, lambda x, t: X - 0.7, X) - 0.7).max() < 1e-12
        return
    assert abs(spec.table[-1, 1:].sum() + 1.0) < 1e-12
    assert abs(spec.table[-1, 0] - 1.0) < 1e-12


@pytest.mark.parametrize(("text", "asked"), [("H3P5", 11), ("H4", 8), ("P5", 6), ("H1P1", 3)])
def test_flowturbo_is_its_blocks(text: str, asked: int) -> None:
    spec = make_sampler(f"flowturbo:{text}", convention="flowturbo")
    heun, pseudo = (int(text.partition(letter)[2][:1] or 0) for letter in "HP")
    grid = numpy.linspace(0, 1, heun + pseudo + 1)
    x, carried, h = X, None, grid[1]
    for i in range(heun + pseudo):
        d = carried if carried is not None and i >= heun else toy(x, grid[i])
        carried = toy(x + h * d, grid[i + 1])
        x = x + 0.5 * h * (d + carried)
    assert spec.evaluations == asked
    numpy.testing.assert_allclose(run(spec, toy, X), x, rtol=1e-12, atol=1e-12)


def test_a_chain_of_flowturbo_carries_two_tensors() -> None:
    assert realize(make_sampler("flowturbo:H3P5", convention="flowturbo")).rank == 2


def test_the_pseudo_corrector_is_of_order_2_on_a_normal_distribution() -> None:
    exact = gaussian_flow(X, 1.0)
    errors = [float(numpy.abs(forwards("pseudo-corrector", steps) - exact).mean()) for steps in (20, 40, 80, 160)]
    orders = numpy.log2(numpy.array(errors[:-1]) / errors[1:])
    assert (orders > 1.85).all()
    assert (orders < 2.05).all()


@pytest.mark.parametrize(("solver", "ratio"), [("midpoint", 4.0), ("euler", 2.0)])
def test_the_error_of_a_round_trip_falls_with_the_order(solver: str, ratio: float) -> None:
    errors = []
    for steps in (80, 160):
        there = make_sampler(solver, steps, convention="flowturbo", inverts=True)
        back = make_sampler(solver, steps, convention="flowturbo")
        data = gaussian_flow(X, 1.0)
        there_and_back = run(back, GAUSSIAN.velocity, run(there, GAUSSIAN.velocity, data))
        errors.append(float(numpy.abs(there_and_back - data).mean()))
    # The rule is symmetric up to its order, so that a round trip may gain one more.
    assert errors[0] / errors[1] > 0.9 * ratio


def test_an_inversion_asks_at_the_same_times_the_other_way_round() -> None:
    there = make_sampler("euler", 4, "shift:3", "flowturbo", inverts=True)
    assert [t for (t,) in there.times] == [
        1.0,
        *[t for (t,) in make_sampler("euler", 4, "shift:3", "flowturbo").times][:0:-1],
    ]


@pytest.mark.parametrize("convention", ["ddpm", "stable-diffusion"])
def test_a_constant_noise_makes_one_step_of_ddim_as_good_as_a_thousand(convention: str) -> None:
    noise = numpy.sin(X)
    one, thousand = (run(make_sampler("ddim", n, convention=convention), lambda x, t: noise, X) for n in (1, 1000))
    numpy.testing.assert_allclose(one, thousand, rtol=1e-6, atol=1e-6)


def test_ddim_is_its_form_without_the_data() -> None:
    """x_s = (a_s/a_t) x_t + (s_s - a_s s_t/a_t) eps."""
    spec = make_sampler("ddim", schedule="999,500", convention="ddpm")
    products = numpy.cumprod(1 - numpy.linspace(1e-4, 0.02, 1000))
    a, b = numpy.sqrt(products[[999, 500]])
    s, r = numpy.sqrt(1 - products[[999, 500]])
    numpy.testing.assert_allclose(spec.table[1], [b / a, r - b * s / a, 0], rtol=1e-12, atol=1e-12)


def test_phases_jump_between_exactly_their_edges() -> None:
    spec = make_sampler("phased", 4, convention="stable-diffusion")
    assert spec.times == ((999.0,), (749.0,), (499.0,), (249.0,))
    numpy.testing.assert_array_equal(spec.table, make_sampler("ddim", 4, convention="stable-diffusion").table)


def test_the_rule_of_rfpp_carries_the_initial_noise_and_reaches_a_point_mass() -> None:
    spec = make_sampler("rfpp-new", 6, convention="rfpp")
    assert realize(spec).rank == 2
    for steps in STEPS:
        spec = make_sampler("rfpp-new", steps, convention="rfpp")
        numpy.testing.assert_allclose(run(spec, lambda x, t: (x - 0.7) / t, X), 0.7, rtol=1e-11)


@pytest.mark.parametrize("steps", STEPS)
def test_meanflow_is_exact_in_any_number_of_steps(steps: int) -> None:
    """With the average velocity of the flow to a normal distribution, of which SplitMeanFlow's identity holds."""

    def network(z: Table, t: float, interval: float) -> Table:
        noise = (z - gaussian_flow(0 * z, 1 - t)) / (gaussian_flow(0 * z + 1, 1 - t) - gaussian_flow(0 * z, 1 - t))
        return (z - gaussian_flow(noise, 1 - (t - interval))) / interval

    spec = make_sampler("meanflow", steps, convention="meanflow")
    numpy.testing.assert_allclose(run(spec, network, X), gaussian_flow(X, 1.0), rtol=1e-11, atol=1e-11)


def test_an_sde_without_diffusion_is_the_ode() -> None:
    stochastic = make_sampler("sde:constant", 5, convention="sit", norm=0.0)
    times = [*numpy.linspace(0, 0.96, 5), 1.0]
    ode = make_sampler("euler", schedule=times, convention="flowturbo")
    assert stochastic.draws == 0
    numpy.testing.assert_allclose(stochastic.table, ode.table, rtol=1e-12, atol=1e-15)


def test_an_sde_draws_the_distribution_of_the_data() -> None:
    rng = numpy.random.default_rng(11)
    spec = make_sampler("sde", 250, convention="sit")
    start, *noises = rng.standard_normal((1 + spec.draws, 4000))
    found = run(spec, PAIR.velocity, start, noises)
    assert spec.draws == 249
    # Twice the standard error of 4000 draws; steps of 0.004 add less.
    assert abs(float(numpy.mean(found > 0)) - 0.5) < 0.016
    assert abs(float(numpy.abs(found).mean()) - 2.0) < 0.02


@pytest.mark.parametrize(("name", "last"), [("ddpm", 0.0), ("rfpp", 1e-3), ("edm", 0.002)])
def test_an_inversion_starts_where_the_network_can_be_asked(name: str, last: float) -> None:
    with pytest.raises(UserError, match="write last_time a little off"):
        make_sampler("euler", 4, convention=name, inverts=True)
    assert len(make_sampler("euler", 4, convention=name, inverts=True, last_time=last).times) == 4


def test_the_inverse_of_ddim_is_undone_by_ddim() -> None:
    """With a noise that does not depend on the sample both are exact."""
    there = make_sampler("ddim", 5, convention="ddpm", last_time=0.0, inverts=True)
    back = make_sampler("ddim", 5, convention="ddpm", last_time=0.0)
    noise = numpy.sin(X)
    found = run(back, lambda x, t: noise, run(there, lambda x, t: noise, X))
    numpy.testing.assert_allclose(found, X, rtol=1e-9, atol=1e-9)
