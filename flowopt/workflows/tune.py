"""Tune: measure where the passes of a pipeline have a choice."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile

from flowopt.analysis.linear_group import LinearGroup
from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.errors import MissingDependency, UserError
from flowopt.lowering.targets import Target
from flowopt.lowering.targets import target as target_named
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.rewrite.driver import apply
from flowopt.runtime.onnx_session import CPU_PROVIDER, CUDA_PROVIDER, cuda_available
from flowopt.workflows.measured_gain import measured_gain
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.tuned import Tuned, structure_digest


def tune(
    program: Program,
    *,
    target: str = "cpu",
    passes: str | Pipeline = DEFAULT_PRESET,
    repeats: int = 20,
    threads: int | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Measure every group of linear layers that ``merge-parallel-linears`` could merge, apart and merged.

    The groups are those that the pass finds behind the passes before it; their sizes are the captured ones. Groups of
    equal sizes are measured once. A group is to be merged where the gain reaches the pass's ``min_gain``, and at
    least 1.

    Args:
        program: as captured; never changed.
        target: ``cpu`` or ``cuda``.
        passes: the pipeline that the choices are for; where it does not name the pass, the pass follows it.
        repeats: alternated rounds of each form.
        threads: within one operator; by default one for every processor.
        on_progress: gets one line per step.

    Raises:
        UserError: a target that no runtime is timed for, or a dtype that the runtime has no kernel for.
        MissingDependency: the runtime, or the target's device, is missing.
    """
    provider = _provider(target_named(target))
    pipeline = passes if isinstance(passes, Pipeline) else Pipeline(passes)
    merging = next((p for p in pipeline.passes if isinstance(p, MergeParallelLinears)), MergeParallelLinears())
    on_progress("looking for linear layers of one input")
    groups = _groups(program, pipeline, merging)
    threads = threads if threads is not None else os.cpu_count() or 1
    gains: dict[LinearGroup, float] = {}
    for group in groups.values():
        if group not in gains:
            on_progress(f"timing {group}")
            found = measured_gain(group, provider=provider, threads=threads, repeats=repeats)
            gains[group] = round(found, 3)
    least = max(merging.min_gain, 1.0)
    name, number = _runtime()
    choices = (MeasuredMerge(site, group, gains[group] >= least, gains[group]) for site, group in groups.items())
    return Tuned(structure_digest(program), target, name, number, threads, tuple(choices))


def _groups(program: Program, pipeline: Pipeline, merging: MergeParallelLinears) -> dict[str, LinearGroup]:
    """Site and sizes of every group, as the pass sees them."""
    before = list(takewhile(lambda p: not isinstance(p, MergeParallelLinears), pipeline.passes))
    prepared = run_passes(program, before).program
    steps = apply(replace(merging, min_gain=0.0, measured=()), prepared).steps
    return {step.anchor: step.plan.group for step in steps if step.plan.group.rows}


def _provider(target: Target) -> str:
    if target.backend != "onnx":
        raise UserError(f"no runtime is timed for the target {target.name}", hint="use cpu or cuda")
    if target.device == "cuda" and not cuda_available():
        raise MissingDependency("timing for cuda needs a GPU", hint="run it where there is one")
    return CUDA_PROVIDER if target.device == "cuda" else CPU_PROVIDER


def _runtime() -> tuple[str, str]:
    """Name and version of the distribution that holds ONNX Runtime."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    raise MissingDependency("timing needs onnxruntime", hint='pip install "flowopt[cpu]"')
