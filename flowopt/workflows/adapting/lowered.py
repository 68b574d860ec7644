"""An adapted model as an artifact, measured beside that of its original."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowopt.errors import BackendFailed, Inconclusive, MissingDependency, UserError
from flowopt.program.program import Program
from flowopt.report.adaptation import Adaptation
from flowopt.report.report import Report
from flowopt.runtime.artifact import Artifact
from flowopt.workflows.adapting.compared import compared
from flowopt.workflows.adapting.recorded import record_adaptation
from flowopt.workflows.optimize import Form, optimize


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """Attributes as of ``AdaptResult``."""

    artifact: Artifact | None
    report: Report
    adaptation: Adaptation


def lowered(
    original: Program,
    made: Program,
    adaptation: Adaptation,
    *,
    target: str,
    arch: str | None,
    folder: Path,
    timing: bool,
    seed: int,
    on_progress: Callable[[str], None],
    form: Form = "parallel",
    sizes: Mapping[str, int] | None = None,
) -> Lowered:
    """Fold and lower what was made: exact rewrites of the adapted model, each proved against it.

    Args:
        original: as it was captured.
        made: the adapted model.
        adaptation: goes into the artifact's report.
        target, arch, folder: of the artifact.
        timing: measure it beside the original's, where the target runs here.
        seed: of the verification.
        on_progress: gets one line per step.
        form: ``recurrent`` lowers a step, which takes one token where the original takes sequences: nothing is timed.
        sizes: of free dimensions to time at.
    """
    result = optimize(
        made,
        target=target,
        arch=arch,
        folder=folder,
        seed=seed,
        adaptation=adaptation,
        form=form,
        on_progress=on_progress,
    )
    if result.artifact is None or not timing or form == "recurrent" or target in ("cuda", "tvm-cuda"):
        return Lowered(result.artifact, result.report, adaptation)
    try:
        found = compared(
            original,
            result.program,
            result.artifact,
            target=target,
            arch=arch,
            sizes=sizes,
            on_progress=on_progress,
        )
        adaptation = dataclasses.replace(adaptation, comparison=found)
    except (BackendFailed, Inconclusive, MissingDependency, UserError) as error:
        # The artifact is there and verified: that the original has none to compare with takes nothing from it.
        note = f"not measured beside the original: {error.message}"
        adaptation = dataclasses.replace(adaptation, notes=(*adaptation.notes, note))
    record_adaptation(result.artifact.folder, adaptation)
    return Lowered(result.artifact, dataclasses.replace(result.report, adaptation=adaptation), adaptation)
