"""Schedules come out of the scheduler as its pipeline sets it up: golden values, and sums that any table has."""

from typing import Any

import diffusers
import numpy
import pytest

from flowopt.sampling import SamplerSpec, probe_scheduler
from tests.sampling.schedulers import CASES, probed

# The library's arrays of tensors warn under newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_QUARTERS = {"sigmas": [1.0, 0.75, 0.5, 0.25]}
_FLOW_MATCH = diffusers.FlowMatchEulerDiscreteScheduler
# Schedulers whose network gives a velocity: the sample is x plus the integral of it.
_VELOCITY = ["flow-match-euler", "flow-match-euler-mu", "flow-match-heun", "dpm++-2m-flow"]
# Schedulers whose state is data plus sigma times noise: likewise in sigma, when the network gives the noise.
_NOISE = ["euler", "heun", "kdpm2", "lms"]


def sigmas_of(spec: SamplerSpec) -> list[float]:
    """An Euler step multiplies by the next sigma minus this one; the last is 0."""
    return [*(-numpy.cumsum(spec.table[-1, :0:-1])[::-1]).tolist(), 0.0]


@pytest.mark.parametrize(
    ("settings", "steps", "options", "golden"),
    [
        ({"shift": 3.0}, 4, {}, [1, 0.857692, 0.602151, 0.008929, 0]),
        ({"shift": 3.0}, None, _QUARTERS, [1, 0.9, 0.75, 0.5, 0]),
        ({"shift": 1.0}, 4, {}, [1, 0.667, 0.334, 0.001, 0]),
        ({"use_dynamic_shifting": True}, None, _QUARTERS | {"mu": 1.15}, [1, 0.904531, 0.759511, 0.512844, 0]),
        ({"use_dynamic_shifting": True}, None, _QUARTERS | {"mu": 0.5}, [1, 0.831824, 0.622459, 0.354661, 0]),
        (
            {"use_dynamic_shifting": True, "time_shift_type": "linear"},
            None,
            _QUARTERS | {"mu": 2.0},
            [1, 0.857143, 0.666667, 0.4, 0],
        ),
        (
            {"use_dynamic_shifting": True, "shift_terminal": 0.1},
            None,
            _QUARTERS | {"mu": 1.0},
            [1, 0.812615, 0.538635, 0.1, 0],
        ),
        ({"shift": 3.0, "use_karras_sigmas": True}, 4, {}, [1, 0.286694, 0.062589, 0.008929, 0]),
    ],
)
def test_golden_sigmas(settings: dict[str, Any], steps: int | None, options: dict[str, Any], golden: list) -> None:
    spec = probe_scheduler(_FLOW_MATCH(**settings), steps, **options)
    numpy.testing.assert_allclose(sigmas_of(spec), golden, atol=6e-7)  # golden values have six digits
    numpy.testing.assert_allclose([t for (t,) in spec.times], 1000 * numpy.array(golden[:-1]), atol=6e-4)


def test_golden_times_of_heun() -> None:
    spec = probe_scheduler(diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0), 3)
    times = [t / 1000 for (t,) in spec.times]
    numpy.testing.assert_allclose(times, [1, 0.751121, 0.751121, 0.008929, 0.008929], atol=6e-7)  # six digits


@pytest.mark.parametrize(
    ("scheduler", "golden"),
    [
        (_FLOW_MATCH(shift=3.0), [-0.142308, -0.255542, -0.593222, -0.008929]),
        (CASES["dpm++-2m-flow"].make(), [-0.083512, -0.041399, -0.375089, -0.499667]),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
            [-0.049674, -0.02744, -0.421886, -0.500999],
        ),
    ],
)
def test_golden_weights_of_the_outputs(scheduler: object, golden: list[float]) -> None:
    spec = probe_scheduler(scheduler, 4)
    numpy.testing.assert_allclose(spec.table[-1, 1:], golden, atol=2e-6)  # float32 coefficients, six digits


def test_truncated_timesteps_of_flow_sigmas_are_whole() -> None:
    assert probed(CASES["dpm++-2m-flow"], 4).times == ((999.0,), (899.0,), (749.0,), (499.0,))


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("name", _VELOCITY + _NOISE)
def test_a_constant_is_integrated_exactly(name: str, steps: int) -> None:
    scheduler = CASES[name].make()
    scheduler.set_timesteps(steps, **CASES[name].options)
    spec = probed(CASES[name], steps)
    sigmas = scheduler.sigmas
    assert spec.table[-1, 1:].sum() == pytest.approx(float(sigmas[-1] - sigmas[0]), rel=2e-6)  # float32 sigmas


@pytest.mark.parametrize("steps", [1, 8, 28])
@pytest.mark.parametrize("name", _VELOCITY)
def test_a_velocity_leaves_the_factor_of_the_initial_noise(name: str, steps: int) -> None:
    assert probed(CASES[name], steps).table[-1, 0] == pytest.approx(1.0, rel=1e-6)  # float32 sigmas


def test_a_schedule_that_was_set_before_is_kept() -> None:
    scheduler = _FLOW_MATCH(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.4])
    set_before = probe_scheduler(scheduler)
    assert set_before.times == probe_scheduler(scheduler, sigmas=[1.0, 0.4]).times
    numpy.testing.assert_allclose(sigmas_of(set_before), [1, 2 / 3, 0], atol=1e-6)  # float32 sigmas


def test_timesteps_of_the_caller_are_taken() -> None:
    spec = probe_scheduler(diffusers.DDPMScheduler(clip_sample=False), timesteps=[900, 500, 100])
    assert spec.times == ((900.0,), (500.0,), (100.0,))


def test_options_go_to_the_method_that_has_them() -> None:
    whole = probe_scheduler(diffusers.LCMScheduler(), 4)
    fewer = probe_scheduler(diffusers.LCMScheduler(), 4, original_inference_steps=20)
    second = probe_scheduler(diffusers.LMSDiscreteScheduler(), 8, order=2)
    assert whole.times != fewer.times
    assert numpy.abs(second.table - probe_scheduler(diffusers.LMSDiscreteScheduler(), 8).table).max() > 1e-3
