"""Lower a program to TVM, and verify the library: what was imported, and what was compiled."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import Target
from flowopt.lowering.tvm.lower import Compilation, LoweredTvm, lower_to_tvm
from flowopt.program.program import Program
from flowopt.report.report import LevelVerdict
from flowopt.report.verdict import Outcome, Verdict
from flowopt.runtime.relax_module import open_relax
from flowopt.runtime.tvm_package import cuda_device_available
from flowopt.verification.evidence import Evidence
from flowopt.verification.levels import Level
from flowopt.verification.verify_outputs import verify_outputs

COMPILED, IMPORTED = "compiled", "imported"
NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class VerifiedTvm:
    """A staged library, the verdicts on it with the decisive one first, and what to record."""

    lowered: LoweredTvm
    levels: tuple[LevelVerdict, ...]
    runtime: dict[str, str]
    warnings: tuple[str, ...] = ()


def lowered_tvm(
    program: Program,
    staging: Staging,
    target: Target,
    evidence: Evidence | None,
    depth: Level,
    on_progress: Callable[[str], None],
) -> VerifiedTvm:
    """Compile a program and judge the library; where its kernels are what differs, take TVM's plain ones.

    For CUDA without a device only the import is judged, on the CPU, in its smallest case.
    """
    lowered = lower_to_tvm(program, staging, Compilation(target.device, target.arch))
    runtime = {"verified_on": NOTHING, "arch": target.arch or "native"}
    if evidence is None:
        return VerifiedTvm(lowered, (), runtime)
    if target.device == "cuda" and not cuda_device_available():
        imported = _import_verdict(program, _smallest(evidence), "quick", on_progress)
        # A good import says nothing of kernels that never ran: only a bad one decides.
        return VerifiedTvm(lowered, () if imported else (LevelVerdict(IMPORTED, imported),), runtime)
    runtime["verified_on"] = target.device
    verdict = _library_verdict(lowered, evidence, depth, on_progress)
    levels: tuple[LevelVerdict, ...] = (LevelVerdict(COMPILED, verdict),)
    if verdict.outcome is not Outcome.DIFFERENT:
        if depth == "full":
            levels += (LevelVerdict(IMPORTED, _import_verdict(program, evidence, depth, on_progress)),)
        return VerifiedTvm(lowered, levels, runtime)
    return _without_schedules(VerifiedTvm(lowered, levels, runtime), program, staging, target, evidence, on_progress)


def _without_schedules(
    tried: VerifiedTvm,
    program: Program,
    staging: Staging,
    target: Target,
    evidence: Evidence,
    on_progress: Callable[[str], None],
) -> VerifiedTvm:
    """What differs is the import or the kernels. Plain kernels that agree are the artifact's; they are slow."""
    if target.device == "cuda":
        imported = _import_verdict(program, evidence, "quick", on_progress)
        return replace(tried, levels=(*tried.levels, LevelVerdict(IMPORTED, imported)))
    on_progress("lowering again, with plain kernels")
    plain = lower_to_tvm(program, staging, Compilation(arch=target.arch, kind="plain"))
    verdict = _library_verdict(plain, evidence, "quick", on_progress)
    levels = (LevelVerdict(IMPORTED, verdict), *tried.levels)
    if not verdict:
        return replace(tried, levels=(*tried.levels, LevelVerdict(IMPORTED, verdict)))
    reason = tried.levels[0].verdict.reason
    warning = f"scheduled kernels change this model's numbers, so the library has plain ones, which are slow: {reason}"
    return VerifiedTvm(plain, levels, tried.runtime, (warning,))


def _library_verdict(
    lowered: LoweredTvm, evidence: Evidence, depth: Level, on_progress: Callable[[str], None]
) -> Verdict:
    return verify_outputs(
        evidence,
        open_relax(lowered.model).run,
        level=depth,
        on_case=lambda case: on_progress(f"verifying the library: {case}"),
    )


def _import_verdict(program: Program, evidence: Evidence, depth: Level, on_progress: Callable[[str], None]) -> Verdict:
    on_progress("compiling plain kernels, to judge the import alone")
    with tempfile.TemporaryDirectory(prefix="flowopt-") as scratch, Staging(Path(scratch) / "plain") as staging:
        lowered = lower_to_tvm(program, staging, Compilation(kind="plain"))
        return _library_verdict(lowered, evidence, depth, on_progress)


def _smallest(evidence: Evidence) -> Evidence:
    """The evidence of the case with the fewest numbers alone."""
    cases = [known for known in evidence.cases if not known.case.overrides]
    if not cases:
        return evidence
    return replace(evidence, cases=(min(cases, key=lambda known: sum(t.numel() for t in known.case.inputs.values())),))
