"""Explain: every site of every pass, applied or refused, and why; nothing is verified or written."""

from collections.abc import Iterable
from pathlib import Path

from flowopt.errors import UserError
from flowopt.ir.text import operator_census
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.report.report import Report
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.versions import versions


def explain(program: Program, *, passes: str | Path | Pipeline = DEFAULT_PRESET, only: Iterable[str] = ()) -> Report:
    """What the passes would do to ``program`` and why not elsewhere.

    The pipeline runs on a copy, without verification: a fold that a later pass needs is there for it.

    Args:
        program: never changed.
        passes: preset, text form, a TOML file, or a Pipeline.
        only: names of passes to report; all by default.

    Raises:
        UserError: ``only`` names a pass that the pipeline lacks.
    """
    pipeline = passes if isinstance(passes, Pipeline) else Pipeline(passes)
    run = run_passes(program, pipeline.passes)
    wanted = set(only)
    missing = wanted - {p.pass_name() for p in pipeline.passes}
    if missing:
        raise UserError(
            f"the pipeline has no pass {sorted(missing)[0]!r}",
            hint=f"it has {', '.join(p.pass_name() for p in pipeline.passes)}",
        )
    records = tuple(r for r in run.records if not wanted or r.name.split(":")[0] in wanted)
    return Report(
        outcome="dry-run",
        target="",
        source=program.provenance.source,
        passes=records,
        pipeline=pipeline.text(),
        census_before=dict(operator_census(program.graph)),
        census_after=dict(operator_census(run.program.graph)),
        parameter_bytes=(program.parameter_bytes, run.program.parameter_bytes),
        versions=versions(),
    )
