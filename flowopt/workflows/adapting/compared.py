"""The adapted artifact beside the original's: latency and memory."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.measuring.rounds import Plan
from flowopt.program.program import Program
from flowopt.report.adaptation import Comparison
from flowopt.runtime.artifact import Artifact
from flowopt.workflows.bench import bench
from flowopt.workflows.optimize import optimize

# Enough for a ratio of a few percent; flowopt bench measures longer.
_PLAN = Plan(burst=0.05, fewest=12, most=60, width=0.04, budget=20.0)


def compared(
    original: Program,
    adapted: Program,
    artifact: Artifact,
    *,
    target: str,
    arch: str | None = None,
    sizes: Mapping[str, int] | None = None,
    plan: Plan = _PLAN,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Lower the original as the adapted model was, and let both run by turns.

    Args:
        original: as it was captured.
        adapted: as it was lowered, rewritten.
        artifact: of the adapted model.
        target: of both.
        arch: as for ``optimize``.
        sizes: of free dimensions; the usual ones of ``bench`` for those that are not named.
        plan: how long to measure.
        on_progress: gets one line per step.

    Raises:
        Inconclusive: the artifact does not run.
        MissingDependency: its runtime is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="flowopt-adapt-") as scratch:
        on_progress("lowering the original, to compare with")
        # Verified elsewhere, if at all: only its speed counts here.
        plain = optimize(original, target=target, arch=arch, folder=Path(scratch) / "original", verify="off")
        assert plain.artifact is not None, "nothing that is not verified is held back"
        report = bench(
            [artifact.folder, plain.artifact.folder],
            names=["adapted", "original"],
            sizes=[sizes] if sizes else (),
            plan=plan,
            trust="code",  # both were written by this call
            on_progress=on_progress,
        )
        rewritten = plain.program
    (cell,) = report.cells
    measured = dict(cell.sizes)
    return Comparison(
        sizes=measured,
        original_ms=1e3 * cell.measured["original"].median,
        adapted_ms=1e3 * cell.measured[cell.ours].median,
        ratio=cell.ratios["original"],
        stored_bytes=(rewritten.parameter_bytes, adapted.parameter_bytes),
        activation_bytes=(activation_bytes(rewritten, measured), activation_bytes(adapted, measured)),
    )
