"""Lower a sampler, verify the file that was written, and only then commit it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from torch import Tensor

from flowopt.lowering.onnx.export import lower_to_onnx
from flowopt.lowering.onnx.sampler import lower_sampler_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import Target
from flowopt.lowering.torch import lower_sampler_to_torch
from flowopt.program.sampler_program import SamplerProgram
from flowopt.report.loop import LoopCase
from flowopt.report.report import LevelVerdict
from flowopt.report.verdict import Verdict
from flowopt.runtime.onnx_session import CPU_PROVIDER, CUDA_PROVIDER, Level, cuda_available, open_session
from flowopt.runtime.torch_module import open_exported
from flowopt.verification.loop_check import Step, check_loop
from flowopt.verification.loop_evidence import Inputs, LoopEvidence, Sampled
from flowopt.workflows.lower import LoweredRun, Progress
from flowopt.workflows.lower_tvm_sampler import lowered_tvm_sampler

# The file itself is judged with the runtime's optimisations off; then as it will run, or as near as it agrees.
_LEVELS: tuple[Level, ...] = ("all", "extended", "basic")


@final
@dataclass(frozen=True, slots=True)
class LoweredLoop:
    """A lowered sampler.

    Attributes:
        form: how its loop is written.
        run: the file, and what its verification saw.
        cases: figures of the file as it runs.
    """

    form: str
    run: LoweredRun
    cases: tuple[LoopCase, ...] = ()


def lower_and_verify_sampler(
    program: SamplerProgram,
    target: Target,
    folder: Path,
    evidence: Sequence[LoopEvidence | str] | None,
    report: Callable[[LoweredLoop], str],
    *,
    seed: int,
    on_progress: Progress,
) -> LoweredLoop:
    """Write a sampler for a target into a folder; a file that differs is never committed.

    Args:
        program: what to lower.
        target: backend and device.
        folder: the artifact's; an artifact that lies there stays whole until the new one is complete.
        evidence: of the network in a plain loop; None: nothing is verified.
        report: makes the text of ``report.json`` out of the outcome, right before the commit.
        seed: of the evidence.
        on_progress: gets one line per step.

    Raises:
        CannotWrite: the folder.
        UserError: an operator that cannot be lowered.
    """
    with Staging(folder) as staging:
        on_progress(f"lowering to {target.backend}")
        if target.backend == "torch":
            model = lower_sampler_to_torch(program, staging).model
            done = _verified_torch(model, program, evidence, seed, on_progress)
        elif target.backend == "tvm":
            library = lowered_tvm_sampler(program, staging, target, evidence, seed, on_progress)
            model = library.lowered.model
            census = dict(library.lowered.census)
            done = LoweredLoop(library.lowered.form, LoweredRun(library.levels, library.runtime, census), library.cases)
        else:
            lowered = lower_sampler_to_onnx(program, staging, device=target.device)
            model = lowered.model
            done = _verified_onnx(model, program, target, evidence, seed, on_progress)
            run = replace(done.run, census=dict(lowered.op_census))
            done = replace(done, form=str(lowered.form), run=run)
        if done.run.decisive is None or done.run.decisive:
            staging.commit(model, target.model_name, report(done))
    return done


def _verified_torch(
    model: Path,
    program: SamplerProgram,
    evidence: Sequence[LoopEvidence | str] | None,
    seed: int,
    on_progress: Progress,
) -> LoweredLoop:
    if evidence is None:
        return LoweredLoop("copies", LoweredRun(()))
    on_progress("verifying the archive")
    runner = open_exported(model, trust="code")  # flowopt wrote it a moment ago
    verdict, cases = check_loop(evidence, _sampled(runner.run), program.step.run_named, seed=seed)
    return LoweredLoop("copies", LoweredRun((LevelVerdict("eager", verdict),)), cases)


def _verified_onnx(
    model: Path,
    program: SamplerProgram,
    target: Target,
    evidence: Sequence[LoopEvidence | str] | None,
    seed: int,
    on_progress: Progress,
) -> LoweredLoop:
    on_cuda = target.device == "cuda" and cuda_available()
    provider = CUDA_PROVIDER if on_cuda else CPU_PROVIDER
    runtime = {"level": "all", "verified_on": provider if evidence is not None else "nothing"}
    runtime |= {"tf32": "off"} if target.device == "cuda" else {}
    if evidence is None:
        return LoweredLoop("", LoweredRun((), runtime))
    providers = (provider, CPU_PROVIDER) if on_cuda else (provider,)
    # A step cannot be fed from outside where it is inside of a loop: the same step, written by itself.
    with tempfile.TemporaryDirectory() as scratch, Staging(Path(scratch) / "step") as staging:
        step_file = lower_to_onnx(program.step, staging).model

        def judged(level: Level) -> tuple[Verdict, tuple[LoopCase, ...]]:
            on_progress(f"verifying, optimisations {level}")
            step = _step(open_session(step_file, level=level, providers=providers, allow_tf32=False).run)
            whole = open_session(model, level=level, providers=providers, allow_tf32=False).run
            return check_loop(evidence, _sampled(whole), step, seed=seed)

        verdict, cases = judged("disabled")
        levels = [LevelVerdict("disabled", verdict)]
        warnings: list[str] = []
        for level in _LEVELS if verdict else ():
            found, cases = judged(level)
            levels.append(LevelVerdict(level, found))
            if found:
                break
            reason = f"at its optimisation level {level!r}: {found.reason}"
            warnings.append(f"ONNX Runtime changes this sampler's numbers {reason}")
    runtime["level"] = levels[-1].level if levels[-1].verdict else "disabled"
    return LoweredLoop("", LoweredRun(tuple(levels), runtime, warnings=tuple(warnings)), cases)


def _sampled(run: Callable[[Inputs], dict[str, Tensor]]) -> Sampled:
    return lambda inputs: next(iter(run(dict(inputs)).values()))


def _step(run: Callable[[Inputs], dict[str, Tensor]]) -> Step:
    return lambda inputs: run(dict(inputs))
