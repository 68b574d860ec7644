"""Networks of diffusers as their pipelines run them, guided: the library's own loop, and what it did at every step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import diffusers
import torch
from torch import Tensor, nn

import flowopt
from flowopt.program.program import Program
from flowopt.sampling import ClassifierFree, SamplerSpec, probe_scheduler
from tests.zoo.architectures.diffusion import DIFFUSION
from tests.zoo.zoo_model import ZooModel

NO_LABEL = 10
_DIT = ClassifierFree(4.0, unconditional={"label": float(NO_LABEL)}, order="conditional-first")
# FluxPipeline divides the scheduler's times by it; the network multiplies them again.
_FLUX_TIMES = 1000
STEPS_OF_SIZE = 4
_MULTISTEP = diffusers.DPMSolverMultistepScheduler


@dataclass(frozen=True, slots=True)
class Case:
    """A network with the scheduler and the guidance of its pipeline."""

    model: str
    scheduler: Callable[[], Any]
    guidance: ClassifierFree
    predict: Callable[["Case", nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    time_divisor: int = 1

    @property
    def scale(self) -> float:
        """Of the guidance."""
        assert isinstance(self.guidance.scale, float), "pipelines have one scale for all steps"
        return self.guidance.scale

    def spec(self, steps: int) -> SamplerSpec:
        """The scheduler's table, with the times that the pipeline tells the network."""
        probed = probe_scheduler(self.scheduler(), steps)
        told = torch.tensor(probed.times, dtype=torch.float32) / self.time_divisor
        return replace(probed, times=tuple(map(tuple, told.tolist())))


@dataclass(frozen=True, slots=True)
class LibraryRun:
    """What the library's loop did: per step the network's input, the guided prediction and the next sample."""

    given: tuple[Tensor, ...]
    predicted: tuple[Tensor, ...]
    samples: tuple[Tensor, ...]

    @property
    def following(self) -> tuple[Tensor, ...]:
        """Per step the network's next input; the sample behind the last."""
        return (*self.given[1:], self.samples[-1])


def _pair(inputs: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return inputs[f"unconditional_{name}"], inputs[name]


def _conditions(inputs: Mapping[str, Tensor]) -> list[str]:
    return [name for name in inputs if name in ("prompt", "pooled")]


def concatenated(case: Case, module: nn.Module, x: Tensor, time: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """As the pipelines of Stable Diffusion, of its third version and of PixArt guide."""
    conditions = {name: torch.cat(_pair(inputs, name)) for name in _conditions(inputs)}
    doubled = torch.cat([x] * 2)
    output = module(sample=doubled, timestep=time.expand(len(doubled)), **conditions)
    without, given = output.chunk(2)
    guided = without + case.scale * (given - without)
    return guided.chunk(2, dim=1)[0] if guided.shape[1] == 2 * x.shape[1] else guided


def labelled(case: Case, module: nn.Module, x: Tensor, time: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """As DiTPipeline guides: labels first, and the learned variance is split off behind the guidance."""
    channels = x.shape[1]
    doubled = torch.cat([x, x])
    labels = torch.cat([inputs["label"], torch.tensor([NO_LABEL] * len(x))])
    output = module(sample=doubled, timestep=time[None].expand(len(doubled)), label=labels)
    noise, rest = output[:, :channels], output[:, channels:]
    given, without = torch.split(noise, len(noise) // 2)
    half = without + case.scale * (given - without)
    output = torch.cat([torch.cat([half, half]), rest], dim=1)
    prediction, _ = torch.split(output, channels, dim=1)
    return prediction[: len(x)]


def called_twice(case: Case, module: nn.Module, x: Tensor, time: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """As FluxPipeline guides with a negative prompt."""
    told = time.expand(len(x)).to(x.dtype) / case.time_divisor
    names = _conditions(inputs)
    given = module(sample=x, timestep=told, **{name: inputs[name] for name in names})
    without = module(sample=x, timestep=told, **{name: inputs[f"unconditional_{name}"] for name in names})
    guided: Tensor = without + case.scale * (given - without)
    return guided


_FLOW = partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0)
CASES = {
    "dit, DDIM": Case("dit", partial(diffusers.DDIMScheduler, clip_sample=False), _DIT, labelled),
    "dit, DPM++ 2M": Case("dit", _MULTISTEP, _DIT, labelled),
    "sd3, flow Euler": Case("sd3", _FLOW, ClassifierFree(7.0), concatenated),
    "flux, flow Euler": Case("flux", _FLOW, ClassifierFree(3.5), called_twice, _FLUX_TIMES),
    "pixart, DPM++ 2M": Case("pixart", _MULTISTEP, ClassifierFree(4.5), concatenated),
    "unet, Euler": Case("unet2d-conditioned", diffusers.EulerDiscreteScheduler, ClassifierFree(7.5), concatenated),
    "unet, DDIM": Case(
        "unet2d-conditioned", partial(diffusers.DDIMScheduler, clip_sample=False), ClassifierFree(7.5), concatenated
    ),
}


@final
class Singly(nn.Module):
    """A network that runs for each sample of a batch by itself: the same function, in other roundings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> Tensor:
        rows = range(len(inputs["sample"]))
        return torch.cat([self.network(**{name: value[i : i + 1] for name, value in inputs.items()}) for i in rows])


@final
class OfNoisesSize(nn.Module):
    """A network whose predictions are smaller by a factor."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network = network
        self.factor = factor
        # torch.export names inputs after the signature.
        self.forward = self._of(network.forward)

    def _of(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(forward)
        def scaled(*args: Tensor, **kwargs: Tensor) -> Tensor:
            return forward(*args, **kwargs) * self.factor

        return scaled


def captured(model: ZooModel) -> Program:
    """The network, its batch free."""
    return flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


@torch.no_grad()
def model_of(case: Case) -> ZooModel:
    """A tiny network with random weights, whose guided predictions are of the noise's size like those of trained ones.

    As they come, random networks say ten times as much, and unrelated conditions times the guidance make the sample
    grow by hundreds, so that all steps but the first would be compared with what is larger than they are.
    """
    model = DIFFUSION[case.model]()
    inputs = inputs_of(model)
    scheduler = case.scheduler()
    scheduler.set_timesteps(STEPS_OF_SIZE)
    guided = case.predict(case, model.module, inputs["noise"], scheduler.timesteps[0], inputs)
    return dataclasses.replace(
        model, module=OfNoisesSize(model.module, 1.0 / float(guided.square().mean().sqrt())).eval()
    )


def inputs_of(model: ZooModel, batch: int = 2, seed: int = 3) -> dict[str, Tensor]:
    """Inputs of the folded sampler: noise, conditions, and what stands for none."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, example in model.kwargs.items():
        assert isinstance(example, Tensor), "denoisers take tensors"
        if name == "label":
            found[name] = torch.randint(0, NO_LABEL, (batch,), generator=generator)
        elif name != "timestep":
            shape = (batch, *example.shape[1:])
            found["noise" if name == "sample" else name] = torch.randn(shape, generator=generator)
            if name != "sample":
                found[f"unconditional_{name}"] = torch.randn(shape, generator=generator)
    return found


@torch.no_grad()
def library_run(case: Case, module: nn.Module, inputs: Mapping[str, Tensor], steps: int) -> LibraryRun:
    """The loop as pipelines write it, in the module's float32."""
    scheduler = case.scheduler()
    scheduler.set_timesteps(steps)
    latents = inputs["noise"] * getattr(scheduler, "init_noise_sigma", 1.0)
    given, predicted, samples = [], [], []
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
        guided = case.predict(case, module, scaled, time, inputs)
        latents = scheduler.step(guided, time, latents, return_dict=False)[0]
        given.append(scaled)
        predicted.append(guided)
        samples.append(latents)
    return LibraryRun(tuple(given), tuple(predicted), tuple(samples))
