"""Adapt: change a trained model approximately, recover its quality, freeze, fold, lower, and say what is left."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from flowopt.errors import BackendFailed, Inconclusive, MissingDependency, UserError
from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import target as target_named
from flowopt.lowering.tvm.toolchain import require_toolchain
from flowopt.nearest import nearest
from flowopt.passes.swap.swap_norm import TARGETS
from flowopt.program.program import Program
from flowopt.recovery.data.open_data import open_data
from flowopt.recovery.distributed import process_group, rank
from flowopt.report.adaptation import Adaptation
from flowopt.report.report import Report
from flowopt.runtime.artifact import Artifact
from flowopt.workflows.adapting.agreement import Metric
from flowopt.workflows.adapting.beginning import require_recovery
from flowopt.workflows.adapting.budget import QualityBudget
from flowopt.workflows.adapting.by_swap import SwapChoice, adapted_by_swap
from flowopt.workflows.adapting.compared import compared
from flowopt.workflows.adapting.judged import AUTOMATIC
from flowopt.workflows.adapting.metrics import metric_of
from flowopt.workflows.adapting.recalibrated import RECALIBRATIONS, Recalibrating
from flowopt.workflows.adapting.recorded import record_adaptation
from flowopt.workflows.adapting.recovery_plan import DISTILL, RecoveryPlan
from flowopt.workflows.lower import Progress
from flowopt.workflows.optimize import default_folder, optimize

# Of the data that is not held out: distillation keeps the state that is best on it.
_VALIDATION: Final = 0.05
_ALL: Final = "all"
_NO_BUDGET: Final = QualityBudget()


@dataclass(frozen=True, slots=True, eq=False)
class AdaptResult:
    """What ``adapt`` made.

    Attributes:
        program: the adapted model, frozen and not yet folded; after a dry run the captured one.
        artifact: opened; None after a dry run, beyond the budget, or where the lowered file differs from ``program``.
        report: of the lowering, as in ``report.json``; None where nothing was lowered.
        adaptation: what was decided and measured.
    """

    program: Program
    artifact: Artifact | None
    report: Report | None
    adaptation: Adaptation


def adapt(
    program: Program,
    *,
    data: Any,
    swap_norm: str | None = None,
    recalibrate: str | None = None,
    held_out: Any = 0.1,
    batch_size: int | None = None,
    most: int | None = None,
    norms: str = _ALL,
    threshold: float = 0.3,
    force: bool = False,
    padding: str = AUTOMATIC,
    calibration: int = 16,
    recovery: RecoveryPlan | None = None,
    outputs: Collection[str] = (),
    metric: str | Metric | None = None,
    budget: QualityBudget = _NO_BUDGET,
    target_weight: float = 0.5,
    target: str = "cpu",
    arch: str | None = None,
    folder: str | Path | None = None,
    dry_run: bool = False,
    timing: bool = True,
    seed: int = 0,
    on_progress: Progress = lambda _: None,
) -> AdaptResult:
    """Swap a trained model's norms, or recalibrate them, and recover its quality; the function changes.

    Under ``torchrun`` every process recovers on its share of each batch, and the first one writes.

    Args:
        program: never changed.
        data: a file, a folder, arrays by name, batches, or a function that gives them: as for
            ``flowopt.recovery.data.open_data``.
        swap_norm: ``unified``, ``power``, ``frozen``, ``batch`` or ``rms``: what takes the norms' places.
        recalibrate: instead: ``reestimate``, ``alpha-bn`` or ``select``: new statistics for batch norms; ``freeze``:
            for those that go by their batch at test time too.
        held_out: share of the data that recovery never sees, or other data.
        batch_size, most: samples in a batch, and in all.
        norms: ``all``, ``best:6``, positions ``0,2,4-7``, or patterns of module paths.
        threshold: norms with a larger score are refused.
        force: replace those too.
        padding: name of the input that is 1 where a token is real; ``auto``: the one mask that there is; ``none``.
        calibration: batches that norms are measured on, and closed forms are fitted to.
        recovery: which steps, and their settings.
        outputs: floating outputs that count; all by default.
        metric: ``accuracy:ARRAY``, ``package.module:function``, or a function of (outputs, the original's outputs,
            what else is in the batch) that gives a mean over samples.
        budget: what it may cost; beyond it nothing is written.
        target_weight: of the data's statistics in those of ``alpha-bn``, 0 to 1.
        target, arch, folder: of the artifact, as for ``optimize``.
        dry_run: judge, and stop.
        timing: measure latency beside the original's artifact.
        seed: of every draw.
        on_progress: gets one line per step.

    Raises:
        UserError: data that does not fit, norms none of which can be replaced, or a budget for what is not measured;
            and as ``optimize``.
        CannotWrite: the folder, before anything is trained.
        Diverged: distillation.
    """
    wanted = target_named(target, arch)
    if (swap_norm is None) == (recalibrate is None):
        raise UserError("adapt does one thing", hint="swap_norm='unified', or recalibrate='select'")
    _require_known("swap_norm", swap_norm, TARGETS)
    _require_known("recalibrate", recalibrate, RECALIBRATIONS)
    if recalibrate is not None and norms != _ALL:
        raise UserError(f"norms={norms!r} chooses norms to swap", hint="leave it out: every batch norm is recalibrated")
    if wanted.backend == "tvm" and not dry_run:
        require_toolchain(wanted.device, arch)
    counted = _outputs(program, outputs)
    name, figure = metric_of(metric, counted)
    budget.require_measurable(_rows(program, counted), has_metric=figure is not None)
    plan = recovery or RecoveryPlan()
    validation = _VALIDATION if swap_norm is not None and DISTILL in plan.steps else 0.0
    if isinstance(held_out, str | Path) and str(held_out) == str(data):
        raise UserError(f"{held_out} is what recovery trains on, and nothing of it is unseen", hint="held_out=0.1")
    opened = open_data(
        data, program.interface, batch_size=batch_size, held_out=held_out, validation=validation, seed=seed, most=most
    )
    path = Path(folder) if folder is not None else default_folder(program)
    if swap_norm is not None and not dry_run:
        require_recovery(plan, program, opened, outputs=counted, calibration=calibration, seed=seed)
    _require_apart(plan.checkpoint, path)
    with process_group(torch.device("cpu")):
        if not dry_run and rank() == 0:
            # What cannot be written at the end is told at the beginning; leaving it leaves no trace.
            with Staging(path):
                pass
        if swap_norm is not None:
            choice = SwapChoice(swap_norm, norms, threshold, force, padding, calibration, dry_run)
            made, adaptation = adapted_by_swap(program, opened, choice, plan, counted, figure, seed, on_progress)
        else:
            assert recalibrate is not None
            made, adaptation = Recalibrating(
                program, opened, recalibrate, target_weight, calibration, counted, figure, seed, on_progress
            ).run(dry_run=dry_run)
        is_first = rank() == 0
    chosen = {"held_out": _data_name(held_out), "batch_size": batch_size, "most": most, "outputs": counted}
    adaptation = dataclasses.replace(
        adaptation,
        metric=name,
        held_out=opened.held_out_samples,
        data=_data_name(data) or opened.name,
        budget=budget.limits(),
        settings=dict(adaptation.settings) | chosen,
    )
    if dry_run or not is_first:
        return AdaptResult(program if dry_run else made, None, None, adaptation)
    broken = budget.broken(adaptation.stages[-1], adaptation.original_metric)
    adaptation = dataclasses.replace(adaptation, broken=broken)
    if broken:
        return AdaptResult(made, None, None, adaptation)
    return _lowered(program, made, adaptation, target, arch, path, timing, seed, on_progress)


def _lowered(
    original: Program,
    made: Program,
    adaptation: Adaptation,
    target: str,
    arch: str | None,
    folder: Path,
    timing: bool,
    seed: int,
    on_progress: Progress,
) -> AdaptResult:
    """Fold and lower what was made: exact rewrites of the adapted model, each proved against it."""
    result = optimize(
        made, target=target, arch=arch, folder=folder, seed=seed, adaptation=adaptation, on_progress=on_progress
    )
    if result.artifact is None or not timing or target in ("cuda", "tvm-cuda"):
        return AdaptResult(made, result.artifact, result.report, adaptation)
    try:
        found = compared(original, result.program, result.artifact, target=target, arch=arch, on_progress=on_progress)
        adaptation = dataclasses.replace(adaptation, comparison=found)
    except (BackendFailed, Inconclusive, MissingDependency, UserError) as error:
        # The artifact is there and verified: that the original has none to compare with takes nothing from it.
        note = f"not measured beside the original: {error.message}"
        adaptation = dataclasses.replace(adaptation, notes=(*adaptation.notes, note))
    record_adaptation(result.artifact.folder, adaptation)
    return AdaptResult(made, result.artifact, dataclasses.replace(result.report, adaptation=adaptation), adaptation)


def _data_name(data: Any) -> str:
    """A file's name without its folders, which are this machine's; a share or a function as they are; else empty."""
    if isinstance(data, str | Path):
        return Path(data).name if Path(data).exists() else str(data)
    return str(data) if isinstance(data, int | float) else ""


def _outputs(program: Program, wanted: Collection[str]) -> tuple[str, ...]:
    floating = [o.name for o in program.outputs if o.dtype.is_floating_point and o.state is None]
    unknown = [name for name in wanted if name not in floating]
    if unknown or not floating:
        raise UserError(
            f"no floating output {unknown[0]!r}" if unknown else "the model has no floating output to agree on",
            hint=f"its floating outputs: {', '.join(floating)}" if floating else "",
        )
    return tuple(wanted) or tuple(floating)


def _require_apart(checkpoint: Path | None, folder: Path) -> None:
    if checkpoint is not None and folder.resolve() in checkpoint.resolve().parents:
        raise UserError(
            f"the checkpoint {checkpoint} lies in the artifact's folder {folder}",
            why="an artifact is written to a folder of its own",
            hint="a checkpoint elsewhere",
        )


def _rows(program: Program, outputs: Iterable[str]) -> dict[str, int | str]:
    """How many elements a row of each output has."""
    shapes = {name: program.shape(name) for name in outputs}
    return {name: shape[-1] if len(shape) > 1 else 1 for name, shape in shapes.items()}


def _require_known(option: str, value: str | None, known: Iterable[str]) -> None:
    if value is not None and value not in known:
        names: Mapping[str, None] = dict.fromkeys(known)
        raise UserError(f"{option}={value!r} is not known", hint=nearest(value, names, otherwise="one of"))
