"""Optimize: capture is done; rewrite, verify, lower, verify the file, commit."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowopt.errors import RequirementNotMet, UserError
from flowopt.ir.text import operator_census
from flowopt.lowering.targets import Target
from flowopt.lowering.targets import target as target_named
from flowopt.lowering.tvm.toolchain import require_toolchain
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.registry import pass_class
from flowopt.pipeline.runner import PipelineRun
from flowopt.program.program import Program
from flowopt.report.adaptation import Adaptation
from flowopt.report.passes import PassRecord
from flowopt.report.recurrence import Recurrence
from flowopt.report.report import Report
from flowopt.report.to_json import to_json
from flowopt.report.verdict import Outcome, Verdict
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.interface import interface_of
from flowopt.runtime.onnx_session import CUDA_PROVIDER
from flowopt.verification.inputs.case_budget import DEFAULT_BUDGET_TFLOP
from flowopt.verification.levels import Level, require_level
from flowopt.workflows.baseline import Baseline, opened_baseline
from flowopt.workflows.lower import LoweredRun, Progress, lower_and_verify
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.recurrent import recurrent
from flowopt.workflows.tuned import Tuned
from flowopt.workflows.verified_run import (
    NOT_VERIFIED,
    Checks,
    VerifyMode,
    rewritten,
    verdict_of_program,
    with_budgets,
)
from flowopt.workflows.versions import versions

Form = Literal["parallel", "recurrent"]


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """What ``optimize`` made.

    Attributes:
        program: the rewritten program.
        artifact: opened; None after a dry run, or when the lowered file was not written because it differs.
        report: what was decided and measured.
        verdict: of the whole: the lowered file against the captured original.
    """

    program: Program
    artifact: Artifact | None
    report: Report
    verdict: Verdict


def optimize(
    program: Program,
    *,
    target: str = "cpu",
    arch: str | None = None,
    folder: str | Path | None = None,
    passes: str | Path | Pipeline = DEFAULT_PRESET,
    skip: Iterable[str] = (),
    verify: VerifyMode = "each",
    require: Mapping[str, int] | None = None,
    baseline: str | Path | Baseline | None = None,
    dry_run: bool = False,
    seed: int = 0,
    level: Level = "quick",
    case_budget: float = DEFAULT_BUDGET_TFLOP,
    tuned: str | Path | Tuned | None = None,
    adaptation: Adaptation | None = None,
    form: Form = "parallel",
    sequence: str | None = None,
    on_progress: Progress = lambda _: None,
) -> OptimizeResult:
    """Rewrite a program, lower it, and prove both against the original.

    Args:
        program: never changed.
        target: ``cpu``, ``cuda`` (ONNX), ``torch`` (``.pt2``), ``tvm`` or ``tvm-cuda`` (a library of TVM's).
        arch: for ``tvm-cuda`` the architecture, such as ``sm_90``; for ``tvm`` the processor as LLVM names it, by
            default this machine's.
        folder: of the artifact; ``<name of the source>.flowopt`` by default.
        passes: preset, text form, a TOML file, or a Pipeline.
        skip: names of passes to leave out, beside those of a file.
        verify: ``each`` judges every pass and undoes those that fail; ``final`` judges the end only; ``off`` nothing.
        require: pass name to the smallest number of sites where it must have been applied and kept.
        baseline: ``report.json`` of an earlier run: nothing may be worse than it says. A verdict that something
            differs comes first.
        dry_run: stop before lowering; nothing is written.
        seed: of the verification's inputs.
        level: ``quick``, or ``full``: the whole battery of inputs, stressed weights, the lowered file's behaviour.
        case_budget: in TFLOP; a case that costs the original more is skipped and named.
        tuned: measured choices, or the file that holds them; passes follow them in place of their cost models.
        adaptation: how ``program`` was made of another model, for the report.
        form: ``recurrent`` lowers a causal model as a step: one token in and one out, with explicit state.
        sequence: of that, the free dimension of its tokens; None: the one along which anything is carried.
        on_progress: gets one line per step.

    Raises:
        RequirementNotMet: fewer rewrites than required, or something worse than in the baseline; nothing is written.
        MalformedModel, ModelNotFound: the baseline.
        CannotWrite: the folder.
        MissingDependency: what the target needs is not installed.
        BackendFailed: TVM's compiler failed or crashed.
        UserError: an unknown target or pass, measured choices of another model, or an operator that cannot be lowered,
            or cannot go token by token.
    """
    wanted_target = target_named(target, arch)
    if verify not in ("each", "final", "off"):
        raise UserError(f"verify={verify!r} must be each, final or off")
    if form not in ("parallel", "recurrent"):
        raise UserError(f"form={form!r} must be parallel or recurrent")
    if sequence is not None and form != "recurrent":
        raise UserError(f"sequence={sequence!r} belongs to a step", hint="form='recurrent'")
    require_level(level)
    if wanted_target.backend == "tvm" and not dry_run:
        # Before anything is verified: what is missing would be missing at the end, too.
        require_toolchain(wanted_target.device, arch)
    for name in require or {}:
        pass_class(name)
    pipeline = passes if isinstance(passes, Pipeline) else Pipeline(passes, skip=skip)
    least = None if baseline is None else opened_baseline(baseline, program)
    if least is not None:
        least.require_target(wanted_target.name)
        least.require_form(form)
    choices = Tuned.load(tuned) if isinstance(tuned, (str, Path)) else tuned
    if choices is not None:
        choices.require_for(program, target)
        pipeline = pipeline.following(choices)
    recurrence = None
    if form == "recurrent":
        made = recurrent(
            program,
            sequence=sequence,
            verify=verify != "off",
            seed=seed,
            level=level,
            case_budget=case_budget,
            on_progress=on_progress,
        )
        program, recurrence = made.program, made.recurrence
    checks = Checks(verify, seed, level, case_budget, on_progress)
    evidence, run = rewritten(program, pipeline, checks)
    _require_applied(run.records, require or {})
    verdict = verdict_of_program(program, run, evidence, checks)
    if recurrence is not None and recurrence.verdict is not None and not recurrence.verdict:
        verdict = recurrence.verdict
    settings = _Settings(program, run, wanted_target, pipeline.text(), choices, adaptation, recurrence)
    if dry_run or not (verdict or verdict.outcome is Outcome.NOT_VERIFIED):
        report = settings.report("dry-run" if dry_run else verdict.outcome.value, None)
        if least is not None and (verdict or verdict.outcome is Outcome.NOT_VERIFIED):
            least.require_met(report)
        return OptimizeResult(run.program, None, report, verdict)
    path = Path(folder) if folder is not None else default_folder(program)

    def accepted(done: LoweredRun) -> str:
        made = settings.report(settings.outcome(done, is_verified=evidence is not None), done)
        if least is not None:
            least.require_met(made)
        return to_json(made)

    lowered = lower_and_verify(
        run.program,
        wanted_target,
        path,
        evidence,
        accepted,
        level=level,
        on_progress=on_progress,
    )
    outcome = settings.outcome(lowered, is_verified=evidence is not None)
    report = settings.report(outcome, lowered)
    # Not `or`: a verdict that found a difference is falsy.
    decisive = NOT_VERIFIED if lowered.decisive is None else with_budgets(lowered.decisive, run.records)
    written = bool(decisive) or decisive.outcome is Outcome.NOT_VERIFIED
    # The archive was written by this call, so it may be loaded.
    artifact = Artifact.open(path, trust="code") if written else None
    return OptimizeResult(run.program, artifact, report, decisive)


def default_folder(program: Program) -> Path:
    """``<stem>.flowopt`` in the current folder: the archive's stem, or the last part of a class's name."""
    source = program.provenance.source
    stem = Path(source).stem if program.provenance.sha256 else source.rsplit(".", 1)[-1]
    return Path(re.sub(r"[^\w.-]+", "_", stem) + ".flowopt")


def _outcome(target: Target, lowered: LoweredRun, records: Iterable[PassRecord], *, is_verified: bool) -> str:
    verdict = lowered.decisive
    if verdict is None:
        return "compiled-not-run" if target.name == "tvm-cuda" and is_verified else "not-verified"
    if not verdict:
        return verdict.outcome.value
    on_cpu = target.device == "cuda" and lowered.runtime.get("verified_on") not in (CUDA_PROVIDER, "cuda")
    if with_budgets(verdict, records).outcome is Outcome.APPROXIMATE and not on_cpu:
        return "approximate"
    return "verified-on-cpu" if on_cpu else "verified"


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the report says whatever the lowering's outcome."""

    original: Program
    run: PipelineRun
    target: Target
    pipeline: str
    tuned: Tuned | None
    adaptation: Adaptation | None
    recurrence: Recurrence | None

    def outcome(self, lowered: LoweredRun, *, is_verified: bool) -> str:
        """Of the whole; a model that was adapted beforehand is no more than an approximation of its original."""
        found = _outcome(self.target, lowered, self.run.records, is_verified=is_verified)
        return "approximate" if found == "verified" and self.adaptation is not None else found

    def report(self, outcome: str, lowered: LoweredRun | None) -> Report:
        reverted = tuple(f"{r.name} was reverted: {r.reason}" for r in self.run.records if r.outcome == "reverted")
        return Report(
            outcome=outcome,
            target=self.target.name,
            source=self.original.provenance.source,
            passes=self.run.records,
            pipeline=self.pipeline,
            census_before=dict(operator_census(self.original.graph)),
            census_after=dict(operator_census(self.run.program.graph)),
            census_lowered=lowered.census if lowered is not None else {},
            lowered=lowered.levels if lowered is not None else (),
            runtime=lowered.runtime if lowered is not None else {},
            interface=interface_of(self.run.program),
            warnings=(*reverted, *self._of_choices(), *(lowered.warnings if lowered is not None else ())),
            parameter_bytes=(self.original.parameter_bytes, self.run.program.parameter_bytes),
            versions=versions(),
            source_sha256=self.original.provenance.sha256,
            trust=self.original.provenance.trust,
            adaptation=self.adaptation,
            recurrence=self.recurrence,
        )

    def _of_choices(self) -> Iterator[str]:
        """Warnings of measured choices that took no part."""
        unused = () if self.tuned is None else self.tuned.unused(self.run.records)
        if self.tuned is not None and unused:
            shown = f"{', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}"
            yield (
                f"{len(unused)} of {len(self.tuned.merges)} measured choices were not followed: their sites are "
                f"missing or have other sizes: {shown}; measure again"
            )


def _require_applied(records: tuple[PassRecord, ...], require: Mapping[str, int]) -> None:
    for name, count in require.items():
        found = [r for r in records if r.name.split(":")[0] == name]
        applied = sum(len(r.applied) for r in found if r.outcome == "kept")
        if applied >= count:
            continue
        refusals = {code: n for r in found for code, n in r.refusal_counts.items()}
        reverted = "; ".join(f"it was reverted: {r.reason}" for r in found if r.outcome == "reverted")
        why = reverted or ", ".join(f"{n} x {code}" for code, n in refusals.items()) or "it found no site"
        raise RequirementNotMet(
            f"{name} was applied at {applied} sites, {count} are required",
            why=why if found else "it is not in the pipeline",
            hint=f"flowopt explain ... --pass {name} shows every site",
        )
