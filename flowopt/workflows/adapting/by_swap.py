"""Adaptation by swapping norms, from judgement to a frozen model."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass

from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.padding import INVERTED, input_of
from flowopt.recovery.user_loss import LOSSES, user_loss
from flowopt.report.adaptation import Adaptation, NormRecord
from flowopt.workflows.adapting.agreement import Metric
from flowopt.workflows.adapting.judged import Judged, judged
from flowopt.workflows.adapting.recovery_plan import DISTILL, RecoveryPlan
from flowopt.workflows.adapting.swapped import Swapping


@dataclass(frozen=True, slots=True)
class SwapChoice:
    """Which norms are swapped for what; attributes as the arguments of ``flowopt.adapt``."""

    to: str
    norms: str
    threshold: float
    force: bool
    padding: str
    calibration: int
    dry_run: bool


def adapted_by_swap(
    program: Program,
    data: Data,
    choice: SwapChoice,
    plan: RecoveryPlan,
    outputs: Collection[str],
    metric: Metric | None,
    seed: int,
    on_progress: Callable[[str], None],
) -> tuple[Program, Adaptation]:
    """Judge, swap, recover and freeze; after a dry run the program is the prepared one.

    Raises:
        UserError: none of the norms that were asked for can be replaced.
    """
    if DISTILL in plan.ordered and plan.settings.loss not in LOSSES:
        # Imported before the work, not after it.
        user_loss(plan.settings.loss)
    found = judged(
        program,
        data,
        to=choice.to,
        norms=choice.norms,
        threshold=choice.threshold,
        force=choice.force,
        padding=choice.padding,
        calibration=choice.calibration,
        seed=seed,
        on_progress=on_progress,
    )
    said = Adaptation(
        method=f"swap-norm to {choice.to}",
        data="",
        held_out=0,
        norms=found.records,
        settings={"choice": choice, "recovery": plan.settings_for_report(), "seed": seed},
        notes=tuple(_notes(found)),
    )
    if choice.dry_run:
        return found.program, said
    if not found.chosen:
        _refuse_all(found.records)
    done = Swapping(found, choice.to, data, plan, outputs, metric, choice.calibration, seed, on_progress).run()
    norms = tuple(dataclasses.replace(n, errors=done.errors.get(n.site, {})) for n in found.records)
    return done.program, dataclasses.replace(
        said, norms=norms, stages=done.stages, original_metric=done.original_metric, losses=done.losses
    )


def _notes(found: Judged) -> list[str]:
    said: list[str] = []
    if found.padding is not None:
        inverted = found.padding.startswith(INVERTED)
        said.append(f"padding is where {input_of(found.padding)} is {'not ' if inverted else ''}0")
    massive = sum(fit.massive for fit in found.fits.values())
    if massive:
        said.append(f"{massive} massive activations were left out of the measurements, over all norms together")
    return said


def _refuse_all(records: tuple[NormRecord, ...]) -> None:
    refused = [record for record in records if record.reason]
    best = min(refused, key=lambda record: record.score)
    raise UserError(
        f"none of {len(refused)} norms can be replaced",
        why=f"{best.module or best.site} comes nearest: {best.reason}",
        hint="other norms with --norms, a higher --threshold, or --force; --dry-run shows all scores",
    )
