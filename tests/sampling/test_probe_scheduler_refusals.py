"""What is no table of numbers is refused, and the message says which setting is to blame and what to change."""

import sys
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.sampling import probe_scheduler

# The library's arrays of tensors warn under newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def refusal(scheduler: object, steps: int | None = 4, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        probe_scheduler(scheduler, steps, **options)
    return str(caught.value)


class Euler:
    """The least that a scheduler is; the subclasses below step wrongly."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.arange(steps, 0, -1) / steps

    def step(self, output: Tensor, time: Tensor, sample: Tensor) -> Tensor:
        return sample - self.moved(output) / len(self.timesteps)

    def moved(self, output: Tensor) -> Tensor:
        return output


@pytest.mark.parametrize(
    ("scheduler", "option"),
    [
        (diffusers.DDIMScheduler(), "clip_sample"),
        (diffusers.DDPMScheduler(), "clip_sample"),
        (diffusers.DDIMScheduler(clip_sample=False, thresholding=True), "thresholding"),
        (diffusers.DPMSolverMultistepScheduler(thresholding=True), "thresholding"),
        (diffusers.UniPCMultistepScheduler(thresholding=True), "thresholding"),
        (diffusers.CMStochasticIterativeScheduler(), "clip_denoised"),
    ],
)
def test_clipping_is_named(scheduler: Any, option: str) -> None:
    message = refusal(scheduler)
    assert "not linear" in message
    assert f"{option}=True" in message
    assert f"{type(scheduler).__name__}.from_config(scheduler.config, {option}=False)" in message
    probe_scheduler(type(scheduler).from_config(scheduler.config, **{option: False}), 4)


def test_both_clipping_options_are_named() -> None:
    message = refusal(diffusers.DDIMScheduler(thresholding=True))
    assert "clip_sample=False" in message
    assert "thresholding=False" in message


def test_a_learned_variance_is_named() -> None:
    assert "variance_type='learned_range'" in refusal(diffusers.DDPMScheduler(variance_type="learned_range"))


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        diffusers.UniPCMultistepScheduler(
            use_dynamic_shifting=True, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
    ],
)
def test_a_missing_shift_is_named(scheduler: object) -> None:
    assert "mu is missing" in refusal(scheduler)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps(steps: int) -> None:
    assert f"steps={steps}" in refusal(diffusers.EulerDiscreteScheduler(), steps)


def test_an_empty_list_of_sigmas() -> None:
    assert "sigmas is empty" in refusal(diffusers.FlowMatchEulerDiscreteScheduler(), None, sigmas=[])


def test_no_schedule() -> None:
    assert "no schedule yet" in refusal(diffusers.EulerDiscreteScheduler(), None)


def test_a_shift_without_a_schedule() -> None:
    assert "without a number of steps" in refusal(diffusers.FlowMatchEulerDiscreteScheduler(), None, mu=1.0)


def test_a_schedule_that_has_begun() -> None:
    scheduler, x = diffusers.FlowMatchEulerDiscreteScheduler(), torch.ones(1, 3, 4, 4)
    scheduler.set_timesteps(4)
    scheduler.step(x, scheduler.timesteps[0], x)
    assert "has stepped already" in refusal(scheduler, None)


def test_a_state_that_only_a_scheduler_without_a_counter_holds() -> None:
    scheduler, x = diffusers.PNDMScheduler(skip_prk_steps=True), torch.ones(1, 3, 4, 4)
    scheduler.set_timesteps(4)
    scheduler.step(x, scheduler.timesteps[0], x)
    assert "it holds cur_sample, ets" in refusal(scheduler, None)


def test_a_schedule_that_begins_in_its_middle() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    assert "begins at step 2" in refusal(scheduler, None)


def test_steps_that_contradict_the_sigmas() -> None:
    assert "sigmas has 2 entries" in refusal(diffusers.FlowMatchEulerDiscreteScheduler(), 3, sigmas=[1.0, 0.5])


def test_an_option_that_no_method_takes() -> None:
    message = refusal(diffusers.DDIMScheduler(clip_sample=False), etta=1.0)
    assert "does not take etta" in message
    assert "eta" in message.split("its options:")[1]


def test_a_shift_that_the_scheduler_does_not_take() -> None:
    assert "does not take mu" in refusal(diffusers.EulerDiscreteScheduler(), mu=1.0)


def test_a_generator() -> None:
    assert "noise is an input" in refusal(diffusers.EulerAncestralDiscreteScheduler(), generator=torch.Generator())


def test_a_length_that_the_library_has_no_schedule_for() -> None:
    assert "PNDMScheduler.set_timesteps fails" in refusal(diffusers.PNDMScheduler(), 2)


def test_numbers_that_are_not_finite() -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    assert "not finite" in refusal(diffusers.DDIMScheduler(**settings))


@pytest.mark.parametrize(
    ("scheduler", "needed"),
    [
        (diffusers.RePaintScheduler(), "original_image, mask"),
        (diffusers.CogVideoXDPMScheduler(), "old_pred_original_sample, timestep_back"),
    ],
)
def test_a_step_that_needs_more(scheduler: object, needed: str) -> None:
    assert f"step needs {needed}" in refusal(scheduler)


def test_something_else() -> None:
    message = refusal(object())
    assert "no set_timesteps, step" in message
    assert "scale_model_input" in message


def test_a_class() -> None:
    assert "is a class" in refusal(diffusers.EulerDiscreteScheduler)


def test_no_timesteps() -> None:
    class Timeless(Euler):
        def set_timesteps(self, steps: int) -> None:
            self.steps = steps

    assert "no tensor of timesteps" in refusal(Timeless())


def test_a_brownian_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BrownianTreeNoiseSampler", object, raising=False)
    assert "Brownian tree" in refusal(Euler())


def test_noise_that_is_not_normal() -> None:
    class Uniform(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output + torch.rand(output.shape)

    class InPlace(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output + torch.empty_like(output).uniform_()

    assert "calls rand," in refusal(Uniform())
    assert "calls uniform_," in refusal(InPlace())


def test_noise_of_another_shape() -> None:
    class Shared(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output + torch.randn(output.shape[1:])

    assert "draws noise of shape" in refusal(Shared())


def test_a_step_that_mixes_positions() -> None:
    class Centered(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output - output.mean()

    assert "not linear" in refusal(Centered())


def test_a_step_that_adds_a_constant() -> None:
    class Pulled(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output + 0.01

    assert "none of its settings is known to clip" in refusal(Pulled())


def test_a_step_that_saturates_only_large_numbers() -> None:
    class Bounded(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output.clamp(-500, 500)

    assert "not linear" in refusal(Bounded())


def test_a_step_that_overflows() -> None:
    class Overflowing(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return torch.where(output.abs() > 500, torch.nan, output)

    assert "not linear" in refusal(Overflowing())


def test_a_step_that_looks_at_size() -> None:
    class Adaptive(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return output * (1.0 if float(output.abs().max()) < 2 else 0.5)

    assert "not linear" in refusal(Adaptive())


def test_a_step_without_a_sample() -> None:
    class Silent(Euler):
        def step(self, output: Tensor, time: Tensor, sample: Tensor) -> Any:
            return {"x": sample}

    assert "step returns dict" in refusal(Silent())


def test_a_scheduler_that_needs_float32_is_probed_in_it() -> None:
    class Single(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return (output.flatten(1) @ torch.eye(output[0].numel())).reshape(output.shape)

    assert probe_scheduler(Single(), 2).relative_precision > 1e-8
    assert probe_scheduler(Single(), 2).table.tolist() == probe_scheduler(Euler(), 2).table.tolist()


def test_a_scheduler_that_rounds_is_said_to_be_of_its_precision() -> None:
    class Rounding(Euler):
        def moved(self, output: Tensor) -> Tensor:
            return torch.zeros(output.shape).copy_(output / 3)

    assert probe_scheduler(Rounding(), 4).relative_precision > 1e-8
