"""Tables read off schedulers compute what the schedulers' own loops compute."""

import numpy
import pytest

from flowopt.sampling import SamplerSpec, probe_scheduler, realize
from tests.goals.schedulers import ROUNDED, error_of
from tests.sampling.schedulers import (
    CASES,
    DETERMINISTIC,
    STOCHASTIC,
    compared,
    of_library,
    of_table,
    probed,
    relative_error,
    used_draws,
)

# The library's arrays of tensors warn under newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Float32 networks and states; the reference loop of the library rounds its state at each step.
_BOUND = 2e-6
# KDPM2 interpolates a thousand times at each schedule: a second each.
_QUICK = [
    (name, steps) for name in CASES for steps in ((8,) if "kdpm2" in name else (1, 8)) if steps in CASES[name].steps
]
_ALL = [(name, steps) for name in CASES for steps in CASES[name].steps]
_RANKS = {
    "flow-match-euler": 1, "flow-match-heun": 2, "euler": 1, "heun": 2, "ddim": 1, "dpm++-2m": 2, "dpm++-3m": 3,
    "dpm++-single-step": 2, "unipc-2": 3, "unipc-3": 4, "deis": 2, "pndm": 4, "lms": 4, "ipndm": 4, "kdpm2": 2,
    "sa": 3, "euler-ancestral": 1, "ddpm": 1, "ddim-eta-1": 1, "lcm": 1, "sde-dpm++": 2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "steps"), _QUICK)
def test_both_loops_follow_the_library(name: str, steps: int) -> None:
    assert error_of(name, steps, compared(CASES[name], steps)) < _BOUND


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [case for case in _ALL if case not in _QUICK])
def test_both_loops_follow_the_library_at_other_lengths(name: str, steps: int) -> None:
    assert error_of(name, steps, compared(CASES[name], steps)) < _BOUND


@pytest.mark.parametrize(("name", "steps"), sorted(ROUNDED))
def test_an_exception_of_the_goal_is_the_librarys_own_rounding_and_noted(name: str, steps: int) -> None:
    found = compared(CASES[name], steps)
    assert max(found.by_table, found.by_loop) > _BOUND
    assert found.in_double < _BOUND
    assert any("round the sample" in note for note in found.notes)


@pytest.mark.parametrize("name", _RANKS)
def test_the_loop_carries_no_more_tensors_than_the_solver(name: str) -> None:
    assert realize(probed(CASES[name], 8)).rank == _RANKS[name]


@pytest.mark.parametrize("name", ["euler", "flow-match-heun", "dpm++-2m", "sde-dpm++", "euler-ancestral"])
def test_a_table_is_exact_though_the_library_rounds_to_float32(name: str) -> None:
    spec = probed(CASES[name], 8)
    assert spec.relative_precision < 1e-15
    assert realize(spec).error < 1e-12


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_enters_in_the_order_of_the_librarys_draws(name: str) -> None:
    expected, drawn = of_library(CASES[name], 8)
    spec = probed(CASES[name], 8)
    noises = [drawn[k] for k in used_draws(spec, len(drawn))]
    assert relative_error(of_table(spec, noises), expected) < _BOUND
    assert relative_error(of_table(spec, noises[::-1]), expected) > 1e-3


def test_noise_without_effect_is_no_input() -> None:
    spec = probed(DETERMINISTIC["sa"], 4)
    assert spec.draws == 0
    assert spec.notes == ("of the scheduler's 4 draws, those without effect are no inputs: 0, 1, 2, 3",)


def test_initial_noise_has_variance_1() -> None:
    scheduler = CASES["euler"].make()
    scheduler.set_timesteps(8)
    scale = float(scheduler.init_noise_sigma)
    sigma = float(scheduler.sigmas[0])
    spec = probed(CASES["euler"], 8)
    assert spec.table[-1, 0] == pytest.approx(scale, rel=1e-6)
    assert spec.table[0, 0] == pytest.approx(scale / (sigma**2 + 1) ** 0.5, rel=1e-6)


def test_degenerate_schedules_are_noted() -> None:
    def note(name: str) -> str:
        return probed(CASES[name], 1).notes[0]

    assert note("ipndm") == "the scheduler itself returns exactly 0 for this schedule"
    assert note("pndm") == "the scheduler itself makes no use of the network for this schedule"


def test_each_timestep_is_an_evaluation() -> None:
    def evaluations(name: str) -> int:
        return probed(CASES[name], 8).evaluations

    assert [evaluations(name) for name in ("euler", "heun", "kdpm2", "pndm")] == [8, 15, 15, 9]


def test_whole_timesteps_stay_exact() -> None:
    spec = probed(CASES["ddim"], 7)
    scheduler = CASES["ddim"].make()
    scheduler.set_timesteps(7)
    assert spec.times == tuple((float(t),) for t in scheduler.timesteps.tolist())
    assert all(time.is_integer() for (time,) in spec.times)


def test_what_the_library_multiplies_by_zero_is_zero() -> None:
    spec: SamplerSpec = probed(CASES["flow-match-euler"], 4)
    assert numpy.count_nonzero(spec.table[:, 1:]) == 4 * 5 // 2


def test_a_pipeline_that_divides_its_timesteps_says_so() -> None:
    plain = probe_scheduler(CASES["flow-match-euler"].make(), 4)
    divided = probe_scheduler(CASES["flow-match-euler"].make(), 4, time_scale=0.001)
    assert [t for (t,) in divided.times] == pytest.approx([t / 1000 for (t,) in plain.times])
    assert numpy.array_equal(divided.table, plain.table)
