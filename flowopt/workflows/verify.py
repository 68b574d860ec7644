"""Verify: are two models of ours the same function?"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopt.errors import MalformedModel, MissingDependency, UserError
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.program.loading.load import Trust, load
from flowopt.program.program import Program
from flowopt.report.verdict import Finding, Outcome, Verdict
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.trial import require_harmless
from flowopt.verification.evidence import collect_evidence
from flowopt.verification.verify_outputs import verify_outputs

Model = Program | Artifact | str | Path


def verify(
    reference: Model,
    candidate: Model,
    *,
    trust: Trust = "data",
    provider: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Compare a candidate with a reference: structure, specials, discrete outputs, rounding against float64.

    Args:
        reference: a Program, an archive or a factory: the float64 oracle needs its graph.
        candidate: the same, or an artifact (opened, or its folder).
        trust: what files may do; see ``flowopt.load``.
        provider: execution provider for ONNX artifacts.
        limits: what reading files may cost.
        seed: of the input cases.
        on_progress: gets one line per step.

    Raises:
        UserError: the reference is an artifact; its file has no float64 form.
        MissingDependency: the candidate's runtime, or the provider, is not here.
        FlowoptError: a model cannot be loaded.
    """
    original = _opened(reference, trust, provider, limits)
    if isinstance(original, Artifact):
        raise UserError(
            f"the reference {original.folder} is a lowered artifact",
            why="the float64 oracle is made from the captured graph",
            hint="give the original archive or factory first, the artifact second",
        )
    other = _opened(candidate, trust, provider, limits)
    differences = _interface_differences(original, other)
    if differences:
        return Verdict(Outcome.DIFFERENT, differences, seed=seed)
    evidence = collect_evidence(original, seed=seed, on_case=lambda case: on_progress(f"oracle: {case}"))
    candidate_run = _CandidateRun(other)
    verdict = verify_outputs(evidence, candidate_run, on_case=lambda case: on_progress(f"verifying: {case}"))
    if candidate_run.unusable is not None:
        raise candidate_run.unusable
    return verdict


class _CandidateRun:
    """Runs the candidate, and remembers that it could not even be opened: no finding about its numbers."""

    def __init__(self, candidate: Program | Artifact) -> None:
        self._candidate = candidate
        self.unusable: MissingDependency | MalformedModel | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self._candidate.run_named(inputs)
        except (MissingDependency, MalformedModel) as error:
            self.unusable = error
            raise


def _opened(model: Model, trust: Trust, provider: str | None, limits: Limits) -> Program | Artifact:
    if isinstance(model, (Program, Artifact)):
        return model
    if Path(model).is_dir():
        if trust != "code":
            require_harmless(Path(model), limits)
        return Artifact.open(model, trust=trust, provider=provider, limits=limits)
    return load(model, trust=trust, limits=limits)


def _interface_differences(original: Program, other: Program | Artifact) -> tuple[Finding, ...]:
    """Inputs by name and dtype, before anything runs; outputs are compared when they are there."""
    wanted: dict[str, Any] = {i.name: i.dtype for i in original.inputs}
    found: dict[str, Any] = {i.name: i.dtype for i in other.inputs}
    return tuple(
        Finding("structure", f"input {name}", "all cases", _difference(wanted.get(name), found.get(name)))
        for name in dict.fromkeys([*wanted, *found])
        if wanted.get(name) != found.get(name)
    )


def _difference(wanted: Any, found: Any) -> str:
    if found is None:
        return "the candidate lacks it"
    return f"only the candidate has it ({found})" if wanted is None else f"{found}, not {wanted}"
