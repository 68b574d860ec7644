"""Fold a sampler, rewrite its step, lower the whole, and prove the file against the network in a plain loop."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from flowopt.ir.loop_spec import Form
from flowopt.ir.text import operator_census
from flowopt.lowering.targets import Target
from flowopt.lowering.targets import target as target_named
from flowopt.lowering.tvm.toolchain import require_toolchain
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import PipelineRun
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.report.loop import LoopRecord
from flowopt.report.report import Report
from flowopt.report.to_json import to_json
from flowopt.report.verdict import Outcome, Verdict
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.interface import described_interface
from flowopt.runtime.onnx_session import CUDA_PROVIDER
from flowopt.sampling.ends import Epilogue
from flowopt.sampling.folding import fold
from flowopt.sampling.guidance import ClassifierFree
from flowopt.sampling.plain_loop import PlainLoop
from flowopt.sampling.roles import Roles, roles_of
from flowopt.sampling.spec import SamplerSpec
from flowopt.verification.inputs.case_budget import DEFAULT_BUDGET_TFLOP
from flowopt.verification.levels import Level, require_level
from flowopt.verification.loop_evidence import LoopEvidence, Loops, Sampled, loop_evidence
from flowopt.workflows.loop_cases import loop_cases
from flowopt.workflows.lower import Progress
from flowopt.workflows.lower_sampler import LoweredLoop, lower_and_verify_sampler
from flowopt.workflows.optimize import default_folder
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.verified_run import NOT_VERIFIED, Checks, VerifyMode, rewritten, verdict_of_program
from flowopt.workflows.versions import versions

_VARIANCE = "of the prediction's channels the first half is read; the others are a learned variance"


@final
@dataclass(frozen=True, slots=True, eq=False)
class SamplerResult:
    """What ``optimize_sampler`` made.

    Attributes:
        program: the folded sampler, its step rewritten.
        artifact: the opened folder; None when nothing was written.
        report: what ``report.json`` says.
        verdict: on the file, or on the rewritten step when there is no file.
    """

    program: SamplerProgram
    artifact: Artifact | None
    report: Report
    verdict: Verdict


def optimize_sampler(
    program: Program,
    spec: SamplerSpec,
    *,
    target: str = "cpu",
    arch: str | None = None,
    folder: str | Path | None = None,
    guidance: ClassifierFree | None = None,
    form: Form = "auto",
    sample: str | None = None,
    times: Sequence[str] | None = None,
    prediction: str | None = None,
    output: Epilogue | None = None,
    library: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    passes: str | Path | Pipeline = DEFAULT_PRESET,
    skip: Sequence[str] = (),
    verify: VerifyMode = "each",
    dry_run: bool = False,
    seed: int = 0,
    level: Level = "quick",
    case_budget: float = DEFAULT_BUDGET_TFLOP,
    on_progress: Progress = lambda _: None,
) -> SamplerResult:
    """Fold a network and a sampler into one file that is proved against the network in a plain loop.

    The network's step is rewritten by the passes and verified as by ``optimize``. The file is then compared with the
    network itself: each step where it gets the exact state, and from noise to sample, where an error may have grown
    as much as a small change of the noise does. A file that differs is not written.

    Args:
        program: the network, one evaluation; never changed.
        spec: the sampler, of ``flowopt.sampling``.
        target: ``cpu``, ``cuda`` (ONNX), ``torch`` (``.pt2``, the steps written out), ``tvm`` or ``tvm-cuda``.
        arch: as for ``optimize``.
        folder: of the artifact; ``<name of the source>.flowopt`` by default.
        guidance, form, sample, times, prediction, output: as for ``flowopt.sampling.fold``.
        library: your own loop, which the file is compared with too: from the sampler's inputs by name to the sample.
        passes, skip: for the step, as for ``optimize``.
        verify: ``each`` judges every pass and the file; ``final`` the rewritten step and the file; ``off`` nothing.
        dry_run: stop before lowering; nothing is written.
        seed: of the verification's inputs.
        level: ``full`` tries more inputs of the step, and a batch of a prime size.
        case_budget: in TFLOP, for one case of the step.
        on_progress: gets one line per step.

    Raises:
        UserError: what cannot be folded or lowered, and what to write.
        CannotWrite: the folder.
    """
    wanted = target_named(target, arch)
    require_level(level)
    if wanted.backend == "tvm" and not dry_run:
        require_toolchain(wanted.device, arch)
    pipeline = passes if isinstance(passes, Pipeline) else Pipeline(passes, skip=skip)
    on_progress(f"folding {spec.evaluations} evaluations of the network")
    roles = roles_of(program, len(spec.times[0]), sample=sample, times=times, prediction=prediction)
    ending = output or Epilogue()
    folded = fold(
        program,
        spec,
        guidance=guidance,
        form=form,
        sample=roles.sample,
        times=roles.times,
        prediction=roles.prediction,
        output=ending,
    )
    checks = Checks(verify, seed, level, case_budget, on_progress)
    evidence, run = rewritten(folded.step, pipeline, checks)
    verdict = verdict_of_program(folded.step, run, evidence, checks)
    final_program = dataclasses.replace(folded, step=run.program)
    settings = _Settings(program, spec, folded, run, wanted, pipeline.text(), roles.is_doubled)
    if dry_run or not (verdict or verdict.outcome is Outcome.NOT_VERIFIED):
        report = settings.report("dry-run" if dry_run else verdict.outcome.value, None)
        return SamplerResult(final_program, None, report, verdict)
    plain = PlainLoop(program, roles, spec, guidance, ending)
    known = () if verify == "off" else _evidence(plain, folded, library, checks)
    path = Path(folder) if folder is not None else default_folder(program)
    lowered = lower_and_verify_sampler(
        final_program,
        wanted,
        path,
        None if verify == "off" else known,
        lambda done: to_json(settings.report(_outcome(wanted, done, is_verified=verify != "off"), done)),
        seed=seed,
        on_progress=on_progress,
    )
    report = settings.report(_outcome(wanted, lowered, is_verified=verify != "off"), lowered)
    decisive = NOT_VERIFIED if lowered.run.decisive is None else lowered.run.decisive
    is_written = bool(decisive) or decisive.outcome is Outcome.NOT_VERIFIED
    # The archive was written by this call, so it may be loaded.
    artifact = Artifact.open(path, trust="code") if is_written else None
    return SamplerResult(final_program, artifact, report, decisive)


def _evidence(
    plain: PlainLoop, folded: SamplerProgram, library: Sampled | None, checks: Checks
) -> tuple[LoopEvidence | str, ...]:
    program: Program = plain.program
    roles: Roles = plain.roles
    exact = dataclasses.replace(plain, program=program.raised_copy())
    loops = Loops(exact.run, plain.run, folded, library, plain.spec.relative_precision)
    found = []
    for case in loop_cases(program, roles, folded, level=checks.level, seed=checks.seed):
        checks.on_progress(f"the network in a plain loop: {case.label}")
        found.append(loop_evidence(loops, case))
    return tuple(found)


def _outcome(target: Target, lowered: LoweredLoop, *, is_verified: bool) -> str:
    verdict = lowered.run.decisive
    if verdict is None:
        return "compiled-not-run" if target.name == "tvm-cuda" and is_verified else "not-verified"
    if not verdict:
        return verdict.outcome.value
    on_cpu = target.device == "cuda" and lowered.run.runtime.get("verified_on") not in (CUDA_PROVIDER, "cuda")
    return "verified-on-cpu" if on_cpu else "verified"


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the report says whatever the lowering's outcome."""

    original: Program
    spec: SamplerSpec
    folded: SamplerProgram
    run: PipelineRun
    target: Target
    pipeline: str
    is_doubled: bool

    def report(self, outcome: str, lowered: LoweredLoop | None) -> Report:
        reverted = tuple(f"{r.name} was reverted: {r.reason}" for r in self.run.records if r.outcome == "reverted")
        program = dataclasses.replace(self.folded, step=self.run.program)
        return Report(
            outcome=outcome,
            target=self.target.name,
            source=self.original.provenance.source,
            passes=self.run.records,
            pipeline=self.pipeline,
            census_before=dict(operator_census(self.folded.step.graph)),
            census_after=dict(operator_census(self.run.program.graph)),
            census_lowered=lowered.run.census if lowered is not None else {},
            lowered=lowered.run.levels if lowered is not None else (),
            runtime=lowered.run.runtime if lowered is not None else {},
            interface=described_interface(program.interface),
            warnings=(*reverted, *(lowered.run.warnings if lowered is not None else ())),
            parameter_bytes=(self.original.parameter_bytes, program.parameter_bytes),
            versions=versions(("diffusers",)),
            source_sha256=self.original.provenance.sha256,
            trust=self.original.provenance.trust,
            loop=self._record(lowered),
        )

    def _record(self, lowered: LoweredLoop | None) -> LoopRecord:
        loop = self.folded.loop
        tables = loop.tables.values()
        return LoopRecord(
            sampler=self.spec.name,
            evaluations=self.spec.evaluations,
            state=len(loop.state),
            draws=self.spec.draws,
            form=lowered.form if lowered is not None else loop.form,
            table_bytes=sum(t.numel() * t.element_size() for t in tables),
            removed_bytes=self.original.parameter_bytes - self.folded.step.parameter_bytes,
            notes=(*self.spec.notes, *([_VARIANCE] if self.is_doubled else [])),
            cases=lowered.cases if lowered is not None else (),
        )
