"""Adaptation by linearizing attention, from judgement to a frozen model."""

import dataclasses
from collections.abc import Callable, Collection

from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.distributed import names_of_first
from flowopt.recovery.padding import INVERTED, input_of
from flowopt.recovery.user_loss import LOSSES, user_loss
from flowopt.report.adaptation import Adaptation
from flowopt.workflows.adapting.agreement import Metric
from flowopt.workflows.adapting.compared_sizes import compared_sizes
from flowopt.workflows.adapting.frozen_attention import require_step
from flowopt.workflows.adapting.judged_attention import JudgedAttention, judged_attention
from flowopt.workflows.adapting.linear_choice import LinearChoice
from flowopt.workflows.adapting.linearizing import Linearizing
from flowopt.workflows.adapting.recovery_plan import DISTILL, RecoveryPlan


def adapted_by_linearization(
    program: Program,
    data: Data,
    choice: LinearChoice,
    plan: RecoveryPlan,
    *,
    padding: str,
    target: str,
    arch: str | None,
    outputs: Collection[str],
    metric: Metric | None,
    seed: int,
    on_progress: Callable[[str], None],
) -> tuple[Program, Adaptation, dict[str, int]]:
    """Judge, linearize, recover and freeze; after a dry run the program is the prepared one.

    Returns:
        The program, what was decided and measured, and the sizes at which its speed is to be compared.

    Raises:
        UserError: none of the attentions that were asked for can be linearized, or the model could not be a step.
    """
    if DISTILL in plan.ordered and plan.settings.loss not in LOSSES:
        # Imported before the work, not after it.
        user_loss(plan.settings.loss)
    found = judged_attention(
        program,
        data,
        choice,
        padding=padding,
        target=target,
        arch=arch,
        outputs=outputs,
        seed=seed,
        on_progress=on_progress,
    )
    # Speed was measured in every process, and decides.
    names = names_of_first([site.name for site in found.chosen])
    found = dataclasses.replace(found, chosen=tuple(site for site in found.sites if site.name in names))
    said = Adaptation(
        method=f"linearize-attention to {choice.to}",
        data="",
        held_out=0,
        norms=(),
        layers=found.records,
        settings={"choice": choice, "padding": padding, "recovery": plan.settings_for_report(), "seed": seed},
        notes=tuple(_notes(found)),
    )
    if choice.dry_run:
        return found.program, said, {}
    if choice.form == "recurrent":
        require_step(found.program, found.leaves, found.chosen, choice.to)
    done = Linearizing(
        found, choice.to, data, plan, outputs, metric, choice.calibration, seed, on_progress, choice.form
    ).run()
    layers = tuple(dataclasses.replace(layer, errors=done.errors.get(layer.site, {})) for layer in found.records)
    said = dataclasses.replace(
        said, layers=layers, stages=done.stages, original_metric=done.original_metric, losses=done.losses
    )
    return done.program, said, compared_sizes(found.program, found.chosen, choice.length)


def _notes(found: JudgedAttention) -> list[str]:
    said: list[str] = []
    if found.padding is not None:
        inverted = found.padding.startswith(INVERTED)
        said.append(f"padding is where {input_of(found.padding)} is {'not ' if inverted else ''}0")
    return [*said, *found.notes]
