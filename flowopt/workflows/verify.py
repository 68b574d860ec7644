"""Verify: are two models of ours the same function?"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopt.analysis.graph_numbers import GraphNumbers, graph_numbers
from flowopt.errors import MalformedModel, MissingDependency, UserError
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.program.loading.load import Trust, load
from flowopt.program.program import Program
from flowopt.report.stored import stored_report
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.stream import Stream
from flowopt.runtime.trial import require_harmless
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.inputs.case_budget import DEFAULT_BUDGET_TFLOP
from flowopt.verification.inputs.reproducer import save_reproducer, worst_case
from flowopt.verification.inputs.selected_cases import selected_cases
from flowopt.verification.inputs.user_data import user_cases
from flowopt.verification.levels import Level, require_level
from flowopt.verification.precision import strict_float32
from flowopt.verification.verify_outputs import Runner, verify_outputs
from flowopt.verification.verify_program import check_program
from flowopt.workflows.baseline import Baseline, opened_baseline

Model = Program | Artifact | str | Path
Data = Mapping[str, Tensor] | str | Path


def verify(
    reference: Model,
    candidate: Model,
    *,
    trust: Trust = "data",
    provider: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    seed: int = 0,
    level: Level = "quick",
    inputs: Data | None = None,
    case_budget: float = DEFAULT_BUDGET_TFLOP,
    reproducer: str | Path | None = None,
    baseline: str | Path | Baseline | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Compare a candidate with a reference: structure, specials, discrete outputs, rounding against float64.

    A candidate that is a program is also compared in float64, where a change hides behind no rounding.

    Args:
        reference: a Program, an archive or a factory: the float64 oracle needs its graph.
        candidate: the same, or an artifact (opened, or its folder).
        trust: what files may do; see ``flowopt.load``.
        provider: execution provider for ONNX artifacts.
        limits: what reading files may cost.
        seed: of the input cases.
        level: ``quick``: four named cases; ``full``: the whole battery, the candidate's behaviour, stressed weights.
        inputs: cases of your own beside them: tensors by name, a ``.npz`` file, or a folder of such files.
        case_budget: in TFLOP; a case that costs the reference more is skipped and named.
        reproducer: file to which the inputs of the worst case are saved; give it as ``inputs`` to replay them.
        baseline: ``report.json`` of an earlier run of ``optimize``: no output's errors may be much larger than it says.
            A verdict that something differs comes first.
        on_progress: gets one line per step.

    Raises:
        RequirementNotMet: the numbers can be trusted, but are worse than in the baseline.
        UserError: the reference is an artifact; its file has no float64 form.
        MissingDependency: the candidate's runtime, or the provider, is not here.
        FlowoptError: a model cannot be loaded.
    """
    require_level(level)
    original = _opened(reference, trust, provider, limits)
    if isinstance(original, Artifact):
        raise UserError(
            f"the reference {original.folder} is a lowered artifact",
            why="the float64 oracle is made from the captured graph",
            hint="give the original archive or factory first, the artifact second",
        )
    least = None if baseline is None else opened_baseline(baseline, original)
    if least is not None:
        least.require_verified()
    other = _opened(candidate, trust, provider, limits)
    differences = _interface_differences(original, other)
    if differences:
        return Verdict(Outcome.DIFFERENT, differences, seed=seed, level=level)
    selected, skipped = selected_cases(
        original,
        level,
        seed,
        budget_tflop=case_budget,
        data=user_cases(original, _data(inputs)) if inputs is not None else (),
        numbers=graph_numbers(other.graph, other.tensors) if isinstance(other, Program) else GraphNumbers(),
    )
    with strict_float32():
        found = collect_evidence(
            original, seed=seed, cases=selected, on_case=lambda case: on_progress(f"oracle: {case}")
        )
        evidence = replace(found, skipped=(*skipped, *found.skipped))
        candidate_run = _CandidateRun(other)
        verdict = verify_outputs(
            evidence,
            candidate_run,
            level=level,
            more=_as_program(original, other, evidence, level),
            with_threads=_with_threads(other, trust, provider, limits),
            on_case=lambda case: on_progress(f"verifying: {case}"),
        )
    if candidate_run.unusable is not None:
        raise candidate_run.unusable
    verdict = replace(verdict, notes=(*verdict.notes, *_adapted(other)))
    worst = worst_case(verdict, evidence) if reproducer is not None else None
    if reproducer is not None and worst is not None:
        save_reproducer(Path(reproducer), worst, original)
    if least is not None and verdict:
        least.require_verdict_met(verdict)
    return verdict


def _as_program(
    original: Program, other: Program | Artifact, evidence: Evidence, level: Level
) -> Iterable[Figures | Finding | str]:
    if isinstance(other, Artifact):
        return ()
    return check_program(original, other, evidence, with_stress=level == "full")


def _with_threads(
    other: Program | Artifact, trust: Trust, provider: str | None, limits: Limits
) -> Callable[[int], Runner] | None:
    """ONNX Runtime has threads of its own: another number of them is another session."""
    if not isinstance(other, Artifact) or other.model_path.suffix != ".onnx":
        return None

    def opened(threads: int) -> Runner:
        again = Artifact.open(
            other.folder, trust=trust, provider=provider, limits=limits, threads=threads, huge_pages=False
        )
        return _on_whole_sequences(again)

    return opened


def _adapted(candidate: Program | Artifact) -> tuple[str, ...]:
    """That the candidate is another function by intent, where its report says so."""
    if not isinstance(candidate, Artifact) or candidate.report.get("adaptation") is None:
        return ()
    try:
        found = stored_report(dict(candidate.report), what="report.json").adaptation
    except MalformedModel:
        return ()
    if found is None:
        return ()
    return (
        f"the candidate was adapted ({found.method}) and is not meant to be the same function; "
        f"flowopt inspect {candidate.folder} says how near it is on data",
    )


class _CandidateRun:
    """Runs the candidate, and remembers that it could not even be opened: no finding about its numbers."""

    def __init__(self, candidate: Program | Artifact) -> None:
        self._run = _on_whole_sequences(candidate)
        self.unusable: MissingDependency | MalformedModel | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self._run(inputs)
        except (MissingDependency, MalformedModel) as error:
            self.unusable = error
            raise


def _on_whole_sequences(candidate: Program | Artifact) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """The candidate's run; a step runs token by token, from its beginning."""
    recurrence = candidate.recurrence if isinstance(candidate, Artifact) else None
    if recurrence is None or not isinstance(candidate, Artifact):
        return candidate.run_named
    specs = {spec.name: spec.shape for spec in candidate.inputs}

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = {
            dim: value.shape[axis]
            for name, value in inputs.items()
            for axis, dim in enumerate(specs[name])
            if isinstance(dim, str)
        }
        return Stream(candidate.run_named, recurrence, sizes).run(**inputs)

    return run


def _opened(model: Model, trust: Trust, provider: str | None, limits: Limits) -> Program | Artifact:
    if isinstance(model, (Program, Artifact)):
        return model
    if Path(model).is_dir():
        if trust != "code":
            require_harmless(Path(model), limits)
        return Artifact.open(model, trust=trust, provider=provider, limits=limits, huge_pages=False)
    return load(model, trust=trust, limits=limits)


def _interface_differences(original: Program, other: Program | Artifact) -> tuple[Finding, ...]:
    """Inputs by name and dtype, before anything runs; outputs are compared when they are there."""
    wanted: dict[str, Any] = {i.name: i.dtype for i in original.inputs}
    recurrence = other.recurrence if isinstance(other, Artifact) else None
    carried = {state.input for state in recurrence.states} if recurrence is not None else set()
    found: dict[str, Any] = {i.name: i.dtype for i in other.inputs if i.name not in carried}
    return tuple(
        Finding("structure", f"input {name}", "all cases", _difference(wanted.get(name), found.get(name)))
        for name in dict.fromkeys([*wanted, *found])
        if wanted.get(name) != found.get(name)
    )


def _difference(wanted: Any, found: Any) -> str:
    if found is None:
        return "the candidate lacks it"
    return f"only the candidate has it ({found})" if wanted is None else f"{found}, not {wanted}"


def _data(inputs: Data) -> Mapping[str, Tensor] | Path:
    return Path(inputs) if isinstance(inputs, str) else inputs
