"""Schedulers of diffusers, their own loop, and the loops that a probed table gives, on one small network."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import diffusers
import numpy
import torch
from torch import Tensor

from flowopt.sampling import Realization, SamplerSpec, probe_scheduler, realize
from flowopt.sampling.probing.columns import Draws

STEPS = (1, 2, 4, 8, 28, 50)


@dataclass(frozen=True, slots=True)
class Case:
    """A scheduler as its pipeline sets it up, and what the pipeline passes to its methods."""

    make: Callable[[], Any]
    options: dict[str, object] = field(default_factory=dict)
    least: int = 1

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(steps for steps in STEPS if steps >= self.least)


def no_noise(_: object) -> float:
    """How much noise SA-Solver adds at a time: none."""
    return 0.0


_D = diffusers
_MULTISTEP = _D.DPMSolverMultistepScheduler
DETERMINISTIC = {
    "flow-match-euler": Case(partial(_D.FlowMatchEulerDiscreteScheduler, shift=3.0)),
    "flow-match-euler-mu": Case(partial(_D.FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True), {"mu": 1.15}),
    "flow-match-heun": Case(partial(_D.FlowMatchHeunDiscreteScheduler, shift=3.0)),
    "euler": Case(_D.EulerDiscreteScheduler),
    "euler-v": Case(partial(_D.EulerDiscreteScheduler, prediction_type="v_prediction", use_karras_sigmas=True)),
    "heun": Case(_D.HeunDiscreteScheduler),
    "ddim": Case(partial(_D.DDIMScheduler, clip_sample=False)),
    "dpm++-2m": Case(_MULTISTEP),
    "dpm++-2m-flow": Case(partial(_MULTISTEP, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
    "dpm++-3m": Case(partial(_MULTISTEP, solver_order=3)),
    "dpm++-single-step": Case(partial(_D.DPMSolverSinglestepScheduler, lower_order_final=True)),
    "unipc-2": Case(_D.UniPCMultistepScheduler),
    "unipc-3": Case(partial(_D.UniPCMultistepScheduler, solver_order=3)),
    "deis": Case(_D.DEISMultistepScheduler),
    "pndm": Case(partial(_D.PNDMScheduler, skip_prk_steps=True)),
    # The library's Runge-Kutta start needs four times: its own set_timesteps fails below.
    "pndm-runge-kutta": Case(_D.PNDMScheduler, least=4),
    "lms": Case(_D.LMSDiscreteScheduler),
    "ipndm": Case(_D.IPNDMScheduler),
    "kdpm2": Case(_D.KDPM2DiscreteScheduler),
    "sa": Case(partial(_D.SASolverScheduler, tau_func=no_noise)),
}
STOCHASTIC = {
    "euler-ancestral": Case(_D.EulerAncestralDiscreteScheduler),
    "euler-churned": Case(_D.EulerDiscreteScheduler, {"s_churn": 1.0}),
    "kdpm2-ancestral": Case(_D.KDPM2AncestralDiscreteScheduler),
    "ddpm": Case(partial(_D.DDPMScheduler, clip_sample=False)),
    "ddim-eta-1": Case(partial(_D.DDIMScheduler, clip_sample=False), {"eta": 1.0}),
    "sde-dpm++": Case(partial(_MULTISTEP, algorithm_type="sde-dpmsolver++")),
    "sa-noisy": Case(_D.SASolverScheduler),
    "lcm": Case(_D.LCMScheduler),
    "tcd": Case(_D.TCDScheduler),
    "flow-match-stochastic": Case(partial(_D.FlowMatchEulerDiscreteScheduler, stochastic_sampling=True)),
}
CASES = DETERMINISTIC | STOCHASTIC


def network(x: Tensor, time: float) -> Tensor:
    """A fixed layer with a tanh, in float32."""
    rng = numpy.random.default_rng(7)
    size = x[0].numel()
    mix, bias = (torch.from_numpy(rng.standard_normal(s)).float() for s in ((size, size), (size,)))
    flat = torch.from_numpy(x.numpy().astype(numpy.float32)).reshape(len(x), size)
    mixed = flat @ mix * (0.8 / size**0.5) + bias * float(numpy.cos(time / 300))
    return torch.tanh(mixed).reshape(x.shape)


def start() -> Tensor:
    """Initial noise, float32."""
    return torch.from_numpy(numpy.random.default_rng(11).standard_normal((2, 3, 4, 4))).float()


def of_library(case: Case, steps: int) -> tuple[Tensor, list[Tensor]]:
    """The sample of the scheduler's own loop in float32, and its draws in order."""
    drawn: list[Tensor] = []
    randn, generator = torch.randn, torch.Generator().manual_seed(5)

    def recorded(*args: object, **kwargs: object) -> Tensor:
        drawn.append(randn(*args, **{**kwargs, "generator": generator}))  # type: ignore[call-overload]  # as called
        return drawn[-1].clone()

    with mock.patch("torch.randn", recorded):
        return _looped(case, steps, start()), drawn


def of_library_in_double(case: Case, steps: int, drawn: list[Tensor]) -> Tensor:
    """The same loop on the same noise with samples in float64; the network and the schedule stay in float32."""
    with Draws(lambda k: drawn[k].double(), keeps_double=True):
        return _looped(case, steps, start().double())


def _looped(case: Case, steps: int, x: Tensor) -> Tensor:
    """As pipelines write it."""
    scheduler = case.make()
    scheduler.set_timesteps(steps, **{key: value for key, value in case.options.items() if key == "mu"})
    for_step = {key: value for key, value in case.options.items() if key != "mu"}
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled, float(time)).to(x.dtype)
        x = scheduler.step(output, time, x, **for_step, return_dict=False)[0]
    return x


def of_table(spec: SamplerSpec, noises: list[Tensor]) -> Tensor:
    """The sample by the triangular table, with the network in float32."""
    x, given = start().double().numpy(), [noise.double().numpy() for noise in noises]
    outputs: list[numpy.ndarray] = []
    for (time,) in spec.times:
        outputs.append(network(torch.from_numpy(spec.inputs(x, outputs, given)), time).double().numpy())
    return torch.from_numpy(spec.inputs(x, outputs, given))


def of_loop(spec: SamplerSpec, loop: Realization, noises: list[Tensor]) -> Tensor:
    """The sample by the loop that carries the smallest state, all in float32."""
    carry, gain, noise_gain = (torch.from_numpy(t).float() for t in (loop.carry, loop.gain, loop.noise_gain))
    x = start()
    state = torch.tensordot(torch.from_numpy(loop.start).float()[:, None], x[None], 1)
    for j, draw in enumerate(loop.start_draws):
        state += torch.tensordot(torch.from_numpy(loop.start_noise[:, j : j + 1]).float(), noises[draw][None], 1)
    for i, (time,) in enumerate(spec.times):
        output = network(state[0], time)
        state = torch.tensordot(carry[i], state, 1) + torch.tensordot(gain[i][:, None], output[None], 1)
        for j, draw in enumerate(loop.step_draws[i]):
            state += torch.tensordot(noise_gain[i, :, j : j + 1], noises[draw][None], 1) if noises else 0
    return state[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    gap = float((found.double() - expected.double()).abs().max())
    return gap / (float(expected.abs().max()) or 1.0)


def probed(case: Case, steps: int) -> SamplerSpec:
    """The table of a case's scheduler."""
    options: dict[str, Any] = dict(case.options)
    return probe_scheduler(case.make(), steps, **options)


@dataclass(frozen=True, slots=True)
class Compared:
    """Errors of a table's two loops, relative to the largest number of the library's sample.

    ``in_double`` is the larger of both against the library's loop on samples in float64, which does not round them.
    """

    by_table: float
    by_loop: float
    in_double: float
    rank: int
    draws: int
    notes: tuple[str, ...]


def used_draws(spec: SamplerSpec, count: int) -> list[int]:
    """Which of the library's draws are inputs, as the notes say."""
    unused = [note for note in spec.notes if "without effect" in note]
    left_out = {int(number) for number in re.findall(r"\d+", unused[0].split(":")[1])} if unused else set()
    return [k for k in range(count) if k not in left_out]


def compared(case: Case, steps: int) -> Compared:
    """Run a scheduler's own loop, probe it, and run what the table says on the same noise."""
    expected, drawn = of_library(case, steps)
    spec = probed(case, steps)
    noises = [drawn[k] for k in used_draws(spec, len(drawn))]
    assert len(noises) == spec.draws, f"{len(noises)} draws have an effect, and the table has {spec.draws}"
    loop = realize(spec)
    by_table, by_loop = of_table(spec, noises), of_loop(spec, loop, noises)
    unrounded = of_library_in_double(case, steps, drawn)
    return Compared(
        by_table=relative_error(by_table, expected),
        by_loop=relative_error(by_loop, expected),
        in_double=max(relative_error(by_table, unrounded), relative_error(by_loop, unrounded)),
        rank=loop.rank,
        draws=spec.draws,
        notes=spec.notes,
    )
