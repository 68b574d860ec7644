"""Names, numbers and combinations that are not possible say what to write."""

import numpy
import pytest

from flowopt.errors import UserError
from flowopt.sampling import CONVENTIONS, make_sampler, realize
from flowopt.sampling.solvers.registry import SOLVERS


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        make_sampler(*arguments, **options)  # type: ignore[arg-type]  # wrong on purpose
    return str(caught.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_a_table_with_a_loop_or_says_why_not(solver: str) -> None:
    made = 0
    for name in CONVENTIONS:
        try:
            spec = make_sampler(solver, 4 if solver == "phased" else 6, convention=name)
        except UserError as error:
            assert "does not fit the convention" in str(error)
            continue
        made += 1
        assert realize(spec).error < 1e-11
    assert made >= 1


def test_an_unknown_solver_names_the_nearest() -> None:
    assert "did you mean heun" in refusal("huen", 4)


def test_an_unknown_convention_names_the_nearest() -> None:
    assert "did you mean diffusers-flow" in refusal("euler", 4, convention="diffuser-flow")


def test_an_unknown_option_names_the_nearest() -> None:
    assert "did you mean time_scale" in refusal("euler", 4, time_scales=2.0)
    assert "did you mean eta" in refusal("ddim", 4, etta=0.5)


@pytest.mark.parametrize("steps", [0, -3, True, 2.5])
def test_no_steps_are_refused(steps: object) -> None:
    assert "write steps=1 or more" in refusal("euler", steps)


def test_no_number_of_steps_says_both_ways_to_give_one() -> None:
    assert "write steps=20, or list the times" in refusal("euler")


def test_one_point_of_a_grid_is_no_step() -> None:
    assert "write steps=2 or more" in refusal("euler", 1, convention="sit")


@pytest.mark.parametrize(
    ("solver", "convention", "what"),
    [
        ("flowturbo:H2P4", "ddpm", "the network predicts noise"),
        ("pseudo-corrector", "edm", "the network predicts sample"),
        ("meanflow", "sit", "steps with average-velocity"),
        ("euler", "meanflow", "write solver=meanflow"),
        ("edm", "diffusers-flow", "made for the path variance-exploding"),
        ("phased", "edm", "made for the path variance-preserving"),
        ("sde", "ddpm", "made for the path linear or gvp"),
        ("rfpp-new", "ddpm", "made for the path linear"),
    ],
)
def test_a_solver_that_does_not_fit_the_convention_is_refused(solver: str, convention: str, what: str) -> None:
    message = refusal(solver, 4, convention=convention)
    assert "does not fit" in message
    assert what in message


@pytest.mark.parametrize(
    ("solver", "what"),
    [
        ("euler:3", "takes no argument"),
        ("ddim:much", "is not understood"),
        ("ddim:2", "from 0 (no noise) to 1"),
        ("flowturbo:P4H2", "makes no step"),
        ("flowturbo:H2P4R2", "leave R2 out, or write P6"),
        ("sde:sigmoid", "did you mean sigma?"),
    ],
)
def test_an_argument_that_is_not_understood_is_refused(solver: str, what: str) -> None:
    assert what in refusal(solver, 6, convention="flowturbo")


def test_phases_say_how_many_steps_there_are() -> None:
    assert make_sampler("flowturbo:H2P4", convention="flowturbo").evaluations == 8
    assert "says 6" in refusal("flowturbo:H2P4", 5, convention="flowturbo")


def test_options_are_given_once() -> None:
    assert "given twice" in refusal("ddim:1", 4, eta=0.5)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prediction": "epsilon"}, "prediction='epsilon'"),
        ({"prediction": "v-prediction"}, "path=variance-preserving"),
        ({"prediction": "average-velocity"}, "second_time=interval"),
        ({"first_time": 1.5}, "first_time and last_time between 0.0 and 1.0"),
        ({"first_time": 0.0, "last_time": 1.0}, "leads away from the data"),
        ({"time_scale": "fast"}, "is not a number"),
        ({"asks_at_end": 1}, "is not True or False"),
        ({"train_steps": 0}, "is not a whole number"),
    ],
)
def test_a_convention_that_makes_no_sense_is_refused(options: dict[str, object], what: str) -> None:
    assert what in refusal("euler", 4, **options)


def test_fields_of_a_convention_are_changed_by_name() -> None:
    flux = make_sampler("euler", 4, time_scale=1.0)
    assert flux.times == ((1.0,), (0.75,), (0.5,), (0.25,))


def test_a_preset_may_be_changed_and_given_as_it_is() -> None:
    mine = CONVENTIONS["sit"]
    counted = make_sampler("heun", 5, convention=mine, counts_points=False)
    assert counted.evaluations == 10
    assert make_sampler("heun", 5, convention=mine).evaluations == 8


def test_counted_points_are_noted() -> None:
    assert make_sampler("euler", 5, convention="sit").notes == ("sit counts points of the grid: 5 points make 4 steps",)


def test_rf_solver_is_recognised_as_the_midpoint_rule() -> None:
    spec = make_sampler("rf-solver", 5, "shift:3")
    assert spec.name == "midpoint"
    assert any("rf-solver is midpoint" in note for note in spec.notes)
    numpy.testing.assert_array_equal(spec.table, make_sampler("midpoint", 5, "shift:3").table)


def test_where_the_network_cannot_be_asked_an_euler_step_is_taken_and_noted() -> None:
    spec = make_sampler("heun", 4)
    assert spec.evaluations == 7
    assert "Euler step" in spec.notes[0]


def test_a_prediction_that_says_nothing_at_an_end_is_refused_with_a_way_out() -> None:
    assert "write first_time a little off" in refusal("euler", 4, prediction="noise")
    assert make_sampler("euler", 4, prediction="noise", first_time=0.999).evaluations == 4


def test_a_diffusion_that_is_infinite_at_noise_is_refused() -> None:
    assert "infinite at t=0" in refusal("sde:sbdm", 4, convention="sit")


def test_a_last_step_longer_than_the_path_is_refused() -> None:
    assert "shorter than the path (1)" in refusal("sde", 4, convention="sit", last_step_size=1.0)
