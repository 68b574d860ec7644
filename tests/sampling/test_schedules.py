"""Grids of times: the numbers of the libraries, and what is refused."""

from collections.abc import Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowopt.errors import UserError
from flowopt.sampling import CONVENTIONS, convention_named
from flowopt.sampling.schedules import make_times

FLOW = convention_named("diffusers-flow")
DDPM = convention_named("stable-diffusion")


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("uniform", [1, 0.75, 0.5, 0.25, 0]),
        ("shift:3", [1, 0.9, 0.75, 0.5, 0]),
        ("shift-mu:1.15", [1, 0.904531, 0.759511, 0.512844, 0]),
        ("shift-mu:0.5", [1, 0.831824, 0.622459, 0.354661, 0]),
        ("shift:2", [1, 0.857143, 0.666667, 0.4, 0]),  # what diffusers calls linear with mu=2
        ("1,0.8,0.3,0.1,0", [1, 0.8, 0.3, 0.1, 0]),
        ((1, 0.8, 0.3, 0.1, 0), [1, 0.8, 0.3, 0.1, 0]),
    ],
)
def test_times_of_flow_matching(schedule: str | Sequence[float], wanted: list[float]) -> None:
    numpy.testing.assert_allclose(make_times(schedule, 4, FLOW), wanted, atol=6e-7)  # printed with six digits


def test_karras_times_are_what_diffusers_makes_of_the_same_ends() -> None:
    times = make_times("karras", 4, convention_named("edm", first_time=1.0, least_ratio=1 / 112))
    numpy.testing.assert_allclose(times, [1, 0.286694, 0.062589, 0.008929, 0], atol=6e-7)


def test_karras_times_of_edm() -> None:
    times = make_times("karras:7", 18, convention_named("edm"))
    roots = [80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(18)]
    numpy.testing.assert_allclose(times, [*(root**7 for root in roots), 0], rtol=1e-14)
    assert make_times("karras", 1, convention_named("edm")) == (80.0, 0.0)


def test_karras_times_of_training_steps_are_even_in_roots_of_the_ratio() -> None:
    times = make_times("karras", 6, DDPM)
    path = DDPM.make_path()
    roots = [path.clock(t) ** (1 / 7) for t in times[:-1]]
    numpy.testing.assert_allclose(numpy.diff(roots), numpy.diff(roots)[0], rtol=1e-9)
    assert times[0] == 999
    assert times[-2:] == (0.0, -1.0)


@pytest.mark.parametrize(
    ("schedule", "steps", "wanted"),
    [
        ("trailing", 4, [999, 749, 499, 249, -1]),
        ("trailing", 3, [999, 666, 332, -1]),
        ("leading", 4, [751, 501, 251, 1, -1]),
        ("leading:0", 4, [750, 500, 250, 0, -1]),
        ("uniform", 4, [999, 666, 333, 0, -1]),
        ("uniform", 1, [999, -1]),
        ("999,749,499,249", 4, [999, 749, 499, 249, -1]),
        ("700,-1", None, [700, -1]),
    ],
)
def test_training_steps_are_spaced_as_in_diffusers(schedule: str, steps: int | None, wanted: list[float]) -> None:
    assert list(make_times(schedule, steps, DDPM)) == wanted


def test_the_first_time_may_be_replaced_or_squeezed_in() -> None:
    assert make_times("uniform", 4, convention_named("rfpp")) == (1 - 1e-5, 0.75, 0.5, 0.25, 0.0)
    assert make_times("1,0.75,0.5,0.25,0", None, convention_named("rfpp")) == (1 - 1e-5, 0.75, 0.5, 0.25, 0.0)
    wanted = [i / 4 * (1 - 1e-3) + 1e-3 for i in range(5)]
    numpy.testing.assert_allclose(make_times("uniform", 4, convention_named("rectified-flow")), wanted, rtol=1e-15)


def test_points_are_counted_where_the_code_base_counts_points() -> None:
    numpy.testing.assert_allclose(
        make_times("uniform", 5, convention_named("lfm")), numpy.linspace(1, 1e-5, 5), rtol=1e-15
    )
    numpy.testing.assert_allclose(
        make_times("uniform", 5, convention_named("sit")), numpy.linspace(0, 1, 5), rtol=1e-15
    )
    assert len(make_times("uniform", 5, convention_named("flowturbo"))) == 6


@given(
    st.sampled_from([name for name in CONVENTIONS if CONVENTIONS[name].path == "linear"]),
    st.integers(2, 40),
    st.floats(0.05, 20),
)
@settings(max_examples=40, deadline=None)
def test_shifted_times_run_from_noise_to_data(name: str, steps: int, shift: float) -> None:
    own = CONVENTIONS[name]
    times = make_times(f"shift:{shift}", steps, own)
    differences = numpy.diff(times) * (own.last_time - own.first_time)
    assert (differences > 0).all()
    assert (times[0], times[-1]) == (own.first_time, own.last_time)


@pytest.mark.parametrize(
    ("schedule", "what"),
    [
        ("shfit:3", "did you mean shift"),
        ("shift", "write shift:3"),
        ("shift:fast", "write shift:3"),
        ("shift:nan", "is no number"),
        ("shift:0", "write a number above 0"),
        ("shift:1e300", "repeats times"),
        ("shift-mu:1e9", "0.5 to 1.15"),
        ("uniform:3", "takes no number"),
        ("trailing", "write schedule=uniform"),
        ("leading", "write schedule=uniform"),
        ("1,0.3,0.8,0", "from t=0.3 to t=0.8"),
        ("1,0.3,0.3,0", "falling times, each once"),
        ("0,0.5,1", "falling times"),
        ("1,nan,0", "write finite times"),
        ("1,inf,0", "write finite times"),
        ("2,0.5,0", "with t=2"),
        ("1,-0.5,0", "with t=-0.5"),
        ("1,0.5", "begin and end there"),
        ("0.5,0", "begin and end there"),
        ("1", "write at least 1,0"),
        ("", "there is no schedule ''"),
        ((), "makes no step"),
        ("1,0.5,0", "the schedule lists 2"),
    ],
)
def test_a_schedule_that_is_not_possible_says_what_to_write(schedule: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        make_times(schedule, 4, FLOW)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "steps", "what"),
    [
        ("shift:3", 4, "a shift of times is for flow matching"),
        ("trailing", 1001, "write steps=1000 or fewer"),
        ("leading:600", 4, "leaves the 1000 training steps"),
        ("999,-0.5", None, "with t=-0.5"),
        ("1000,500", None, "with t=1000"),
    ],
)
def test_training_steps_that_do_not_exist_are_refused(schedule: str, steps: int | None, what: str) -> None:
    with pytest.raises(UserError) as caught:
        make_times(schedule, steps, DDPM)
    assert what in str(caught.value)


def test_a_karras_schedule_needs_room() -> None:
    with pytest.raises(UserError, match="write a smaller least_ratio"):
        make_times("karras", 4, convention_named("edm", least_ratio=90.0))
