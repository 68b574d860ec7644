"""The row of latency: a folded file against a session per step, and against the loop in torch.

All run in processes of their own, as in the bench: alternated bursts, one batch of one sample, a thread per processor.
The loop in torch runs on one thread too, and both ratios count.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import flowopt
from flowopt.ir.loop_spec import Form
from flowopt.measuring.contender import Contender
from flowopt.measuring.process import Worker
from flowopt.measuring.rounds import Plan, until_sure
from flowopt.measuring.statistics import ratio, timing
from flowopt.report.bench import Ratio, Timing
from flowopt.runtime.onnx_session import open_session
from flowopt.sampling import realize
from tests.goals import sampler_dit
from tests.goals.row import Measured
from tests.lowering.build_sampler import build_sampler, exported_once
from tests.lowering.test_sampler_forms import FORMS
from tests.sampling.networks import relative

STEPS = (4, 20, 50)
OF_SESSIONS, OF_EAGER = 1.05, 1.0
_PLAN = Plan(burst=0.2, fewest=12, most=300, width=0.03, budget=60.0)
# Float32 against float32, the network in torch and in ONNX Runtime.
_SAME = 1e-4
# What the factories below are told.
_STEPS, _NETWORK, _THREADS = "FLOWOPT_GOALS_STEPS", "FLOWOPT_GOALS_NETWORK", "FLOWOPT_GOALS_THREADS"
_EAGER = {"eager": "eager", "eager on one thread": "eager_single"}
_AXES = {"noise": {0: "batch"}, "label": {0: "batch"}}


@dataclass(frozen=True, slots=True)
class Latency:
    """At one number of steps: seconds, ratios, and files by form (bytes of the model, of weights, seconds to load)."""

    times: Mapping[str, Timing]
    ratios: Mapping[str, Ratio]
    files: Mapping[Form, tuple[int, int, float]]
    taken: str
    difference: float

    @property
    def is_met(self) -> bool:
        """The upper ends of both intervals count."""
        return (
            self.ratios["sessions"].high <= OF_SESSIONS
            and all(self.ratios[name].high < OF_EAGER for name in _EAGER)
            and self.difference < _SAME
        )


@final
class EagerLoop(nn.Module):
    """The library's own loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.network, self.steps = sampler_dit.Dit(), steps
        self.scheduler = sampler_dit.scheduler()

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        self.scheduler.set_timesteps(self.steps)
        latents = noise
        for time_now in self.scheduler.timesteps:
            given = self.scheduler.scale_model_input(latents, time_now)
            output = self.network(given, time_now.expand(len(latents)), label)
            latents = self.scheduler.step(output, time_now, latents, return_dict=False)[0]
        return latents


@final
class Sessions(nn.Module):
    """One session that runs once per step; arrays are made once, and the scheduler is two numbers per step."""

    def __init__(self, model: Path, steps: int, threads: int) -> None:
        import onnxruntime

        from flowopt.runtime.huge_pages import in_huge_pages

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        with in_huge_pages(is_wanted=True):  # as the artifact has it
            self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        spec = sampler_dit.spec(steps)
        loop = realize(spec)
        assert loop.rank == 1 and loop.start[0] == 1.0, "DDIM starts with the noise, and carries the sample alone"
        self.carry = [loop.carry[i, 0, 0].astype("float32") for i in range(steps)]
        self.gain = [loop.gain[i, 0].astype("float32") for i in range(steps)]
        self.times = torch.tensor(spec.times, dtype=torch.float32).numpy()

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        sample = noise.numpy().copy()
        feeds: dict[str, Any] = {"sample": sample, "label": label.numpy(), "timestep": None}
        for carry, gain, told in zip(self.carry, self.gain, self.times, strict=True):
            feeds["timestep"] = told
            output = self.session.run(None, feeds)[0]
            sample *= carry
            output *= gain
            sample += output
        return torch.from_numpy(sample)


def eager() -> dict[str, Any]:
    """Factory of the loop in torch."""
    return _made(EagerLoop(int(os.environ[_STEPS])))


def eager_single() -> dict[str, Any]:
    """The same on one thread: with operators as small as these, more can take longer."""
    torch.set_num_threads(1)
    return eager()


def sessions() -> dict[str, Any]:
    """Factory of the session per step."""
    model = Path(os.environ[_NETWORK]) / "model.onnx"
    return _made(Sessions(model, int(os.environ[_STEPS]), int(os.environ[_THREADS])))


def _made(module: nn.Module) -> dict[str, Any]:
    return {"module": module.eval(), "kwargs": inputs(), "dynamic": _AXES}


def inputs() -> dict[str, Tensor]:
    """One sample."""
    given = sampler_dit.examples(1)
    return {"noise": given["sample"], "label": given["label"]}


def measure() -> Measured:
    """The row."""
    lines: list[str] = []
    shown: list[str] = []
    is_met = True
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network"
        program = sampler_dit.program()
        flowopt.optimize(program, target="cpu", folder=network, verify="final")
        for steps in STEPS:
            found = latency(program, steps, network, Path(folder))
            is_met &= found.is_met
            ratios = ", ".join(f"{_shown(one)} of {name}" for name, one in found.ratios.items())
            lines.append(f"{steps} steps, {found.taken}: {ratios}")
            times = ", ".join(f"{name} {one.median * 1e3:.2f} ms" for name, one in found.times.items())
            lines.append(f"    {times}; they differ by {found.difference:.1e}")
            for form, (model, weights, seconds) in found.files.items():
                lines.append(f"    {form}: {model / 1e3:.0f} kB and {weights / 1e6:.2f} MB, loads in {seconds:.2f} s")
            of_eager = max(found.ratios[name].value for name in _EAGER)
            shown.append(f"{found.ratios['sessions'].value:.2f}/{of_eager:.2f}")
    return Measured(f"{', '.join(shown)} of sessions/eager at {', '.join(map(str, STEPS))} steps", is_met, tuple(lines))


def latency(program: flowopt.Program, steps: int, network: Path, folder: Path) -> Latency:
    """Build the sampler in all forms and time the one that is taken by itself."""
    result = flowopt.optimize_sampler(program, sampler_dit.spec(steps), sample="sample", dry_run=True, verify="final")
    files: dict[Form, tuple[int, int, float]] = {}
    with mock.patch("flowopt.lowering.onnx.sampler.onnx_model", exported_once):
        for form in FORMS:
            built = build_sampler(result.program, folder / f"{form}-{steps}", form)
            started = time.perf_counter()
            open_session(built.folder / "model.onnx")
            files[form] = (built.model_bytes, built.weight_bytes, time.perf_counter() - started)
        taken = build_sampler(result.program, folder / f"auto-{steps}", "auto")
    threads = len(os.sched_getaffinity(0))
    told = {_STEPS: str(steps), _NETWORK: str(network), _THREADS: str(threads)}
    contenders = (
        Contender("folded", "artifact", str(taken.folder)),
        Contender("sessions", "eager", "tests.goals.sampler_latency:sessions"),
        *(Contender(name, "eager", f"tests.goals.sampler_latency:{factory}") for name, factory in _EAGER.items()),
    )
    others = [one.name for one in contenders[1:]]
    given = inputs()
    save_file(given, folder / "inputs.safetensors")
    lost: dict[str, str] = {}
    with ExitStack() as stack, mock.patch.dict(os.environ, told):
        workers = {
            one.name: stack.enter_context(Worker(one, folder / "inputs.safetensors", tuple(given), threads))
            for one in contenders
        }
        for worker in workers.values():
            worker.wait_ready()
        samples = [load_file(worker.outputs)["0"] for worker in workers.values()]
        bursts = until_sure(workers, "folded", others, _PLAN, lost)
    assert not lost, f"{lost}"
    return Latency(
        times={name: timing(found) for name, found in bursts.items()},
        ratios={name: ratio(bursts["folded"], bursts[name]) for name in others},
        files=files,
        taken=str(taken.lowered.form),
        difference=max(relative(sample, samples[-1]) for sample in samples),
    )


def _shown(found: Ratio) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
