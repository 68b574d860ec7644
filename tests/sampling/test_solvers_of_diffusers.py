"""Tables against the loops of diffusers, which computes in float32."""

from typing import Any

import diffusers
import numpy
import pytest
import torch

from flowopt.sampling import make_sampler
from tests.sampling.fields import run, toy

X = numpy.linspace(-2, 2, 7)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def network(x: numpy.ndarray, t: float) -> numpy.ndarray:
    return toy(x, t / 1000)


def by_library(scheduler: Any, steps: int) -> numpy.ndarray:
    scheduler.set_timesteps(steps)
    x = torch.tensor(X.reshape(1, 1, 7), dtype=torch.float32)
    for t in scheduler.timesteps:
        output = network(x.double().numpy(), float(t))
        x = scheduler.step(torch.tensor(output, dtype=torch.float32), t, x).prev_sample
    found: numpy.ndarray = x.double().numpy().reshape(7)
    return found


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(
    ("solver", "schedule", "ends_in_data", "scheduler", "options"),
    [
        ("ddim", "trailing", False, "DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
        ("ddim", "trailing", True, "DDIMScheduler", {"clip_sample": False}),
        ("ddim", "leading", True, "DDIMScheduler", {"clip_sample": False, "steps_offset": 1}),
        ("dpmpp-2m", "trailing", True, "DPMSolverMultistepScheduler", {}),
        ("dpmpp-2m", "trailing", False, "DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
        ("unipc", "trailing", True, "UniPCMultistepScheduler", {}),
        ("unipc", "trailing", False, "UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ],
)
def test_the_table_is_what_diffusers_computes(
    solver: str, schedule: str, ends_in_data: bool, scheduler: str, options: dict[str, Any], steps: int
) -> None:
    made = getattr(diffusers, scheduler)(**BETAS, timestep_spacing=schedule, **options)
    theirs = by_library(made, steps)
    spec = make_sampler(solver, steps, schedule, "stable-diffusion", ends_in_data=ends_in_data)
    numpy.testing.assert_allclose(run(spec, network, X), theirs, atol=3e-5)  # three times what float32 gives
