"""Networks of diffusers, folded and as files, against the library's own loops in eager float32.

``python -m tests.goals.sampler_networks [NAME]...`` prints the table of everything that was measured.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import flowopt
from flowopt.lowering.onnx.export import lower_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.runtime.onnx_session import open_session
from flowopt.sampling import Epilogue, SamplerSpec
from flowopt.sampling.plain_loop import PlainLoop
from flowopt.sampling.roles import roles_of
from tests.goals.row import Measured
from tests.lowering.build_sampler import build_sampler, exported_once
from tests.lowering.test_sampler_forms import FORMS
from tests.sampling.forced import forced_steps, library_against_itself, step_in_double
from tests.sampling.networks import relative
from tests.sampling.pipelines import CASES, Case, Singly, captured, inputs_of, library_run, model_of

STEPS = (4, 8)
GOAL = 1e-6
_NUDGE = 1e-6
# With its own loop handed to ``optimize_sampler`` as well.
_WITH_LIBRARY = ("dit, DDIM", 4)


@dataclass(frozen=True, slots=True)
class Found:
    """Errors of one network at one number of steps, in parts of the largest number of the library's sample.

    Attributes:
        program: of each step of the rewritten program, given the library's own input.
        file: of each step as ONNX.
        own: of each step of the library itself, against float64.
        ends: of each form, from noise to sample.
        own_end: of the library itself, against float64.
        itself: how far the library's steps move when its network runs for each sample of a batch by itself.
        itself_end: its sample, likewise.
        kappa: how many times larger a small change of the noise is in the sample, both in parts of the whole.
        between: the largest difference of two forms.
    """

    program: tuple[float, ...]
    file: tuple[float, ...]
    own: tuple[float, ...]
    ends: Mapping[str, float]
    own_end: float
    itself: tuple[float, ...]
    itself_end: float
    kappa: float
    between: float

    @property
    def step(self) -> float:
        """The largest error of a step."""
        return max(*self.program, *self.file)

    @property
    def end(self) -> float:
        """The largest error of a form."""
        return max(self.ends.values())


def measured(case: Case, module: torch.nn.Module, program: Program, folded: SamplerProgram, steps: int) -> Found:
    """Run the library, every step of the program and of its file, and the files of all forms."""
    spec, inputs = case.spec(steps), inputs_of(model_of(case))
    library = library_run(case, module, inputs, steps)
    expected = library.samples[-1]
    forced = forced_steps(folded, spec, library, inputs)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("flowopt.lowering.onnx.sampler.onnx_model", exported_once),
        mock.patch("flowopt.lowering.onnx.export.onnx_model", exported_once),
    ):
        with Staging(Path(folder) / "step") as staging:
            session = open_session(lower_to_onnx(folded.step, staging).model)
            file = tuple(step.error(session.run) for step in forced)
        samples = {form: build_sampler(folded, Path(folder) / form, form).artifact.run(**inputs) for form in FORMS}
    exact, kappa = _exact(case, spec, program, inputs)
    pairs = [(a, b) for a in samples.values() for b in samples.values()]
    return Found(
        program=tuple(step.error(folded.step.run_named) for step in forced),
        file=file,
        own=tuple(step.error(step_in_double(folded, step.number)) for step in forced),
        ends={form: relative(_tensor(sample), expected) for form, sample in samples.items()},
        own_end=relative(expected, exact),
        itself=library_against_itself(case, module, spec, library, inputs),
        itself_end=relative(library_run(case, Singly(module), inputs, steps).samples[-1], expected),
        kappa=kappa,
        between=max(relative(_tensor(a), _tensor(b)) for a, b in pairs),
    )


def _exact(case: Case, spec: SamplerSpec, program: Program, inputs: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """The network's sample in float64, and how sensitive it is to the noise."""
    roles = roles_of(program, 1, sample="sample")
    run = PlainLoop(program.raised_copy(), roles, spec, case.guidance, Epilogue()).run
    noise, sample = inputs["noise"].double(), run(inputs)
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nudge = direction * (_NUDGE * noise.norm() / direction.norm())
    moved = run({**inputs, "noise": noise + nudge}) - sample
    return sample, float((moved.norm() / sample.norm()) / (nudge.norm() / noise.norm()))


def _tensor(result: Tensor | dict[str, Tensor]) -> Tensor:
    assert isinstance(result, Tensor), "a sampler returns one tensor"
    return result


def folded_of(case: Case, program: Program, steps: int) -> SamplerProgram:
    """The sampler with its step rewritten by the passes."""
    result = flowopt.optimize_sampler(
        program, case.spec(steps), guidance=case.guidance, sample="sample", dry_run=True, verify="final"
    )
    assert result.verdict, f"the rewritten step: {result.verdict.reason}"
    return result.program


def require_library() -> list[str]:
    """Why ``optimize_sampler`` finds its file different from the library's own loop; empty where it does not."""
    name, steps = _WITH_LIBRARY
    case = CASES[name]
    model = model_of(case)
    with tempfile.TemporaryDirectory() as folder:
        result = flowopt.optimize_sampler(
            captured(model),
            case.spec(steps),
            guidance=case.guidance,
            sample="sample",
            folder=Path(folder) / "out",
            library=lambda inputs: library_run(case, model.module, inputs, steps).samples[-1],
        )
    if not result.verdict:
        return [f"{name}, optimize_sampler with the library's loop: {result.verdict.reason}"]
    errors = [one.reference_error for one in result.report.loop.cases] if result.report.loop is not None else []
    return [] if errors and None not in errors else [f"{name}: the library's loop was not compared with"]


def excess_of(found: Found) -> str:
    """Empty where the goal is met; else what is too large, beside how far the library itself is from float64."""
    bounds = {
        "step": (found.step, GOAL, max(found.own)),
        "end": (found.end, GOAL * max(found.kappa, 1.0), found.own_end),
        "between forms": (found.between, GOAL, found.own_end),
    }
    return ", ".join(
        f"{what} {error:.1e} above {most:.1e} (the library itself is {own:.1e} from float64)"
        for what, (error, most, own) in bounds.items()
        if error > most
    )


def lines_of(name: str, steps: int, found: Found) -> tuple[str, ...]:
    """Everything that was measured."""
    ends = ", ".join(f"{form} {error:.1e}" for form, error in found.ends.items())
    return (
        f"{name}, {steps} steps: step {max(found.program):.1e}, as ONNX {max(found.file):.1e}; library against itself "
        f"{max(found.itself):.1e}, against float64 {max(found.own):.1e}",
        f"    end: {ends}, kappa {found.kappa:.2f}; between forms {found.between:.1e}; library against itself "
        f"{found.itself_end:.1e}, against float64 {found.own_end:.1e}",
    )


def measure() -> Measured:
    """The row."""
    short: list[str] = []
    lines: list[str] = []
    worst: list[float] = []
    for name, case in CASES.items():
        model = model_of(case)
        program = captured(model)
        for steps in STEPS:
            found = measured(case, model.module, program, folded_of(case, program, steps), steps)
            excess = excess_of(found)
            short += [f"{name}, {steps} steps: {excess}"] if excess else []
            worst.append(found.step)
            lines += lines_of(name, steps, found)
    short += require_library()
    count = len(CASES) * len(STEPS)
    value = f"{count - len(short)} of {count}; median and worst step {sorted(worst)[count // 2]:.1e}, {max(worst):.1e}"
    return Measured(value, not short, (*short, *lines))


def main(names: list[str]) -> None:
    """Print the table, and the errors step by step."""
    for name in names or CASES:
        case = CASES[name]
        model = model_of(case)
        program = captured(model)
        for steps in STEPS:
            found = measured(case, model.module, program, folded_of(case, program, steps), steps)
            print("\n".join(lines_of(name, steps, found)))
            for what in ("program", "file", "own", "itself"):
                print(f"    {what:8}" + " ".join(f"{error:.1e}" for error in getattr(found, what)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
