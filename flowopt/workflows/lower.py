"""Lower a program, verify the file that was written, and only then commit it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flowopt.lowering.onnx.export import LoweredOnnx, lower_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import Target
from flowopt.lowering.torch import lower_to_torch
from flowopt.program.program import Program
from flowopt.report.report import LevelVerdict
from flowopt.report.verdict import Outcome, Verdict
from flowopt.runtime.onnx_session import CPU_PROVIDER, CUDA_PROVIDER, cuda_available, open_session
from flowopt.runtime.onnx_session import Level as RuntimeLevel
from flowopt.runtime.torch_module import open_exported
from flowopt.verification.evidence import Evidence
from flowopt.verification.levels import Level
from flowopt.verification.verify_outputs import Runner, verify_outputs
from flowopt.workflows.lower_tvm import lowered_tvm

Progress = Callable[[str], None]

# ONNX Runtime's default level is tried right after "disabled"; the others only where the default disagrees.
_DEFAULT_LEVEL: RuntimeLevel = "all"
_LESSER_LEVELS: tuple[RuntimeLevel, ...] = ("extended", "basic")


@dataclass(frozen=True, slots=True)
class LoweredRun:
    """A lowered file and what its verification saw.

    Attributes:
        levels: verdict per optimisation level that was run; empty when verification is off.
        runtime: settings to record: the highest level that agrees, the provider it was verified on.
        census: operators of the lowered file.
        warnings: differences that are the runtime's own.
    """

    levels: tuple[LevelVerdict, ...]
    runtime: Mapping[str, str] = field(default_factory=dict)
    census: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def decisive(self) -> Verdict | None:
        """The verdict on the file itself: ONNX Runtime with its optimisations off, a library as it runs."""
        return self.levels[0].verdict if self.levels else None


def lower_and_verify(
    program: Program,
    target: Target,
    folder: Path,
    evidence: Evidence | None,
    report: Callable[[LoweredRun], str],
    *,
    level: Level = "quick",
    on_progress: Progress = lambda _: None,
) -> LoweredRun:
    """Write ``program`` for ``target`` into ``folder``; a file that differs is never committed.

    Args:
        program: what to lower.
        target: backend and device.
        folder: the artifact's; an artifact that lies there stays whole until the new one is complete.
        evidence: of the original; None: nothing is verified.
        report: makes the text of ``report.json`` out of the outcome; called right before the commit, and
            what it raises prevents it.
        level: of the file's verification; ONNX Runtime's optimisation levels beside the first are checked at it too.
        on_progress: gets one line per step.

    Raises:
        CannotWrite: the folder.
        UserError: an operator that cannot be lowered.
    """
    with Staging(folder) as staging:
        on_progress(f"lowering to {target.backend}")
        if target.backend == "torch":
            model, census = lower_to_torch(program, staging).model, {}
            run = _verified_torch(model, evidence, level, on_progress)
        elif target.backend == "tvm":
            found = lowered_tvm(program, staging, target, evidence, level, on_progress)
            model, census = found.lowered.model, dict(found.lowered.census)
            run = LoweredRun(found.levels, found.runtime, warnings=found.warnings)
        else:
            lowered, run = _lowered_onnx(program, staging, target, evidence, level, on_progress)
            model, census = lowered.model, dict(lowered.op_census)
        run = LoweredRun(run.levels, run.runtime, census, run.warnings)
        if run.decisive is None or run.decisive:
            staging.commit(model, target.model_name, report(run))
    return run


def _verified_torch(model: Path, evidence: Evidence | None, depth: Level, on_progress: Progress) -> LoweredRun:
    if evidence is None:
        return LoweredRun(())
    runner = open_exported(model, trust="code")  # flowopt wrote it a moment ago
    verdict = verify_outputs(
        evidence, runner.run, level=depth, on_case=lambda case: on_progress(f"verifying the archive: {case}")
    )
    return LoweredRun((LevelVerdict("eager", verdict),))


def _lowered_onnx(
    program: Program,
    staging: Staging,
    target: Target,
    evidence: Evidence | None,
    depth: Level,
    on_progress: Progress,
) -> tuple[LoweredOnnx, LoweredRun]:
    """The file and its verification. Where fused operators are what differs, the file without them."""
    lowered = lower_to_onnx(program, staging)
    run = _verified_onnx(lowered.model, target, evidence, depth, on_progress)
    if run.decisive is None or run.decisive.outcome is not Outcome.DIFFERENT:
        return lowered, run
    on_progress("lowering again, without fused operators")
    plain = lower_to_onnx(program, staging, fuses=False)
    if plain.op_census == lowered.op_census:
        return lowered, run
    again = _verified_onnx(plain.model, target, evidence, depth, on_progress)
    if not again.decisive:
        return lowered, run
    warning = f"fused operators change this model's numbers, so the file has none: {run.decisive.reason}"
    return plain, replace(again, warnings=(warning, *again.warnings))


def _verified_onnx(
    model: Path, target: Target, evidence: Evidence | None, depth: Level, on_progress: Progress
) -> LoweredRun:
    on_cuda = target.device == "cuda" and cuda_available()
    provider = CUDA_PROVIDER if on_cuda else CPU_PROVIDER
    runtime = {"level": str(_DEFAULT_LEVEL), "verified_on": provider if evidence is not None else "nothing"}
    runtime |= {"tf32": "off"} if target.device == "cuda" else {}
    if evidence is None:
        return LoweredRun((), runtime)

    providers = (provider, CPU_PROVIDER) if on_cuda else (provider,)

    def opened(level: RuntimeLevel, threads: int | None = None) -> Runner:
        return open_session(model, level=level, providers=providers, threads=threads, allow_tf32=False).run

    def verdict_at(level: RuntimeLevel) -> Verdict:
        # One session at a time: each holds its own copy of the weights.
        return verify_outputs(
            evidence,
            opened(level),
            level=depth,
            with_threads=lambda threads: opened(level, threads),
            on_case=lambda case: on_progress(f"verifying, optimisations {level}: {case}"),
        )

    levels = [LevelVerdict("disabled", verdict_at("disabled"))]
    if not levels[0].verdict:
        return LoweredRun(tuple(levels), runtime)
    levels.append(LevelVerdict(_DEFAULT_LEVEL, verdict_at(_DEFAULT_LEVEL)))
    warnings: list[str] = []
    if not levels[-1].verdict:
        warnings.append(
            f"ONNX Runtime changes this model's numbers at its default optimisation level: {levels[-1].verdict.reason}"
        )
        for level in _LESSER_LEVELS:
            levels.append(LevelVerdict(level, verdict_at(level)))
            if levels[-1].verdict:
                break
        agreed = levels[-1].level if levels[-1].verdict else "disabled"
        runtime["level"] = agreed
        warnings.append(
            f"the artifact records level {agreed!r}, the highest that agrees; other users of it must set it"
        )
    return LoweredRun(tuple(levels), runtime, {}, tuple(warnings))
