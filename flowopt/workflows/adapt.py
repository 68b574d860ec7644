"""Adapt: change a trained model approximately, recover its quality, freeze, fold, lower, and say what is left."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import target as target_named
from flowopt.lowering.tvm.toolchain import require_toolchain
from flowopt.program.program import Program
from flowopt.recovery.data.open_data import open_data
from flowopt.recovery.distributed import process_group, rank
from flowopt.report.adaptation import Adaptation
from flowopt.report.report import Report
from flowopt.runtime.artifact import Artifact
from flowopt.workflows.adapting.agreement import Metric
from flowopt.workflows.adapting.arguments import (
    counted_outputs,
    data_name,
    require_apart,
    require_method,
    require_options,
    require_unseen,
    row_sizes,
)
from flowopt.workflows.adapting.beginning import require_recovery
from flowopt.workflows.adapting.budget import QualityBudget
from flowopt.workflows.adapting.by_linearization import adapted_by_linearization
from flowopt.workflows.adapting.by_swap import SwapChoice, adapted_by_swap
from flowopt.workflows.adapting.judged import AUTOMATIC
from flowopt.workflows.adapting.linear_choice import LinearChoice
from flowopt.workflows.adapting.lowered import lowered
from flowopt.workflows.adapting.metrics import metric_of
from flowopt.workflows.adapting.original_on_data import require_original
from flowopt.workflows.adapting.recalibrated import Recalibrating
from flowopt.workflows.adapting.recovery_plan import DISTILL, RecoveryPlan
from flowopt.workflows.lower import Progress
from flowopt.workflows.optimize import Form, default_folder

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
    linearize: str | None = None,
    recalibrate: str | None = None,
    held_out: Any = 0.1,
    batch_size: int | None = None,
    most: int | None = None,
    norms: str = _ALL,
    threshold: float = 0.3,
    layers: str = _ALL,
    keep_softmax: float = 0.0,
    keep_by: str = "entropy",
    length: int | None = None,
    attention: Mapping[str, int | float] | None = None,
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
    form: Form = "parallel",
    dry_run: bool = False,
    timing: bool = True,
    seed: int = 0,
    on_progress: Progress = lambda _: None,
) -> AdaptResult:
    """Swap a trained model's norms, linearize its attention or recalibrate it, and recover its quality: it changes.

    Under ``torchrun`` every process recovers on its share of each batch, and the first one writes.

    Args:
        program: never changed.
        data: a file, a folder, arrays by name, batches, or a function that gives them: as for
            ``flowopt.recovery.data.open_data``.
        swap_norm: ``unified``, ``power``, ``frozen``, ``batch`` or ``rms``: what takes the norms' places.
        linearize: instead: ``hybrid``, ``hedgehog``, ``flow`` or another of
            ``flowopt.ops.attention.LINEARIZATIONS``: what takes the place of softmax attention.
        recalibrate: instead: ``reestimate``, ``alpha-bn`` or ``select``: new statistics for batch norms; ``freeze``:
            for those that go by their batch at test time too.
        held_out: share of the data that recovery never sees, or other data.
        batch_size, most: samples in a batch, and in all.
        norms: ``all``, ``best:6``, positions ``0,2,4-7``, or patterns of module paths.
        threshold: norms with a larger score are refused.
        layers: attentions to linearize: ``all``, positions ``0,2,4-7``, or patterns of module paths.
        keep_softmax: share of the layers that keep softmax, those that a linear one would cost most; 0 to below 1.
        keep_by: ``entropy`` of the attention's rows, the least are kept; or ``effect`` of each layer alone on outputs.
        length: of sequences that speed is judged at; of the captured example by default.
        attention: options of what takes the place of softmax, such as ``{"window": 32}``.
        force: replace norms above the threshold, and attentions that would be slower, too.
        padding: name of the input that is 1 where a token is real; ``auto``: the one mask that there is; ``none``.
        calibration: batches that norms or attentions are measured on, and closed forms are fitted to.
        recovery: which steps, and their settings.
        outputs: floating outputs that count; all by default.
        metric: ``accuracy:ARRAY``, ``package.module:function``, or a function of (outputs, the original's outputs,
            what else is in the batch) that gives a mean over samples.
        budget: what it may cost; beyond it nothing is written.
        target_weight: of the data's statistics in those of ``alpha-bn``, 0 to 1.
        target, arch, folder: of the artifact, as for ``optimize``.
        form: of a linearized causal model: ``recurrent`` lowers it as a step, as ``optimize`` does.
        dry_run: judge, and stop.
        timing: measure latency beside the original's artifact.
        seed: of every draw.
        on_progress: gets one line per step.

    Raises:
        UserError: data that does not fit, norms or attentions none of which can be replaced, options of another
            method, or a budget for what is not measured; and as ``optimize``.
        CannotWrite: the folder, before anything is trained.
        Diverged: distillation.
    """
    wanted = target_named(target, arch)
    require_method({"swap_norm": swap_norm, "linearize": linearize, "recalibrate": recalibrate})
    method = "swap_norm" if swap_norm is not None else "linearize" if linearize is not None else "recalibrate"
    require_options(method, {"norms": (norms, _ALL), "threshold": (threshold, 0.3)}, of="swap_norm")
    of_attention = {
        "layers": (layers, _ALL),
        "keep_softmax": (keep_softmax, 0.0),
        "keep_by": (keep_by, "entropy"),
        "length": (length, None),
        "attention": (attention, None),
        "form": (form, "parallel"),
    }
    require_options(method, of_attention, of="linearize")
    options = dict(attention or {})
    linear = LinearChoice(
        linearize or "", layers, keep_softmax, keep_by, length, force, calibration, dry_run, options, form
    )
    if linearize is not None:
        linear.require_known()
    if wanted.backend == "tvm" and not dry_run:
        require_toolchain(wanted.device, arch)
    counted = counted_outputs(program, outputs)
    name, figure = metric_of(metric, counted)
    budget.require_measurable(row_sizes(program, counted), has_metric=figure is not None)
    given = recovery or RecoveryPlan()
    plan = given.for_attention() if method == "linearize" else given.for_norms()
    trains = method != "recalibrate"
    require_unseen(held_out, data)
    opened = open_data(
        data,
        program.interface,
        batch_size=batch_size,
        held_out=held_out,
        validation=_VALIDATION if trains and DISTILL in plan.ordered else 0.0,
        seed=seed,
        most=most,
    )
    path = Path(folder) if folder is not None else default_folder(program)
    if trains and not dry_run:
        require_recovery(plan, program, opened, outputs=counted, calibration=calibration, seed=seed)
    require_apart(plan.checkpoint, path)
    with process_group(torch.device("cpu")):
        if not dry_run and rank() == 0:
            # What cannot be written at the end is told at the beginning; leaving it leaves no trace.
            with Staging(path):
                pass
        if trains:
            require_original(
                program,
                opened,
                plan,
                outputs=counted,
                calibration=calibration,
                dry_run=dry_run,
                on_progress=on_progress,
            )
        sizes: dict[str, int] = {}
        if swap_norm is not None:
            choice = SwapChoice(swap_norm, norms, threshold, force, padding, calibration, dry_run)
            made, adaptation = adapted_by_swap(program, opened, choice, plan, counted, figure, seed, on_progress)
        elif linearize is not None:
            made, adaptation, sizes = adapted_by_linearization(
                program,
                opened,
                linear,
                plan,
                padding=padding,
                target=target,
                arch=arch,
                outputs=counted,
                metric=figure,
                seed=seed,
                on_progress=on_progress,
            )
        else:
            assert recalibrate is not None
            made, adaptation = Recalibrating(
                program, opened, recalibrate, target_weight, calibration, counted, figure, seed, on_progress
            ).run(dry_run=dry_run)
        is_first = rank() == 0
    chosen = {"held_out": data_name(held_out), "batch_size": batch_size, "most": most, "outputs": counted}
    adaptation = dataclasses.replace(
        adaptation,
        metric=name,
        held_out=opened.held_out_samples,
        data=data_name(data) or opened.name,
        budget=budget.limits(),
        settings=dict(adaptation.settings) | chosen,
    )
    if dry_run or not is_first:
        return AdaptResult(program if dry_run else made, None, None, adaptation)
    broken = budget.broken(adaptation.stages[-1], adaptation.original_metric)
    adaptation = dataclasses.replace(adaptation, broken=broken)
    if broken:
        return AdaptResult(made, None, None, adaptation)
    done = lowered(
        program,
        made,
        adaptation,
        target=target,
        arch=arch,
        folder=path,
        timing=timing,
        seed=seed,
        form=form,
        sizes=sizes,
        on_progress=on_progress,
    )
    return AdaptResult(made, done.artifact, done.report, done.adaptation)
