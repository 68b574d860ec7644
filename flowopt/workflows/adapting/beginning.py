"""What can be told of a recovery before anything is measured or trained: no work is lost to it."""

import itertools
from collections.abc import Collection
from dataclasses import replace

from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.recovery.beginning import require_beginning
from flowopt.recovery.data.batch_axis import batch_axis
from flowopt.recovery.data.data import Data
from flowopt.recovery.observed import parted
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.user_loss import LOSSES
from flowopt.workflows.adapting.recovery_plan import DISTILL, MATCH, RIDGE, TRANSFER, RecoveryPlan


def require_recovery(
    plan: RecoveryPlan, program: Program, data: Data, *, outputs: Collection[str], calibration: int, seed: int
) -> None:
    """Refuse a recovery whose steps cannot all be made.

    Args:
        plan: its steps.
        program: whose norms are swapped, or whose attention is linearized.
        data: the first batches of each part are read.
        outputs: that count.
        calibration: number of batches.
        seed: of the adaptation.

    Raises:
        MissingDependency: of the optimizer.
        UserError: a part of the data without a batch, one batch for calibration that cannot be parted, or a
            checkpoint that is there already or of other settings.
        MalformedModel: a checkpoint that is none.
    """
    if not data.has_held_out:
        raise UserError("there is no held-out data to measure on", hint="a share of the data, or --held-out FILE")
    next(data.held_out(), None)
    if DISTILL in plan.ordered:
        settings = distillation(plan.settings, outputs, (), seed)
        # What is replaced is known only when the model is prepared.
        unknown = () if settings.features or settings.loss not in LOSSES else ("features",)
        require_beginning(settings, plan.checkpoint, resume=plan.resume, unknown=unknown)
        next(data.validation(), None)
    if {RIDGE, MATCH, TRANSFER} & set(plan.ordered):
        count = max(calibration, plan.transfer_batches) if TRANSFER in plan.ordered else calibration
        first = [batch.inputs for batch in itertools.islice(data.calibration(count), 2)]
        parted(first, None, batch_axis(program.interface))


def distillation(
    settings: RecoverySettings, outputs: Collection[str], features: Collection[str], seed: int
) -> RecoverySettings:
    """The settings with what is empty in them filled in."""
    # Values of norms, or of attention, keep the model on its way from layer to layer; a user's own loss stands alone.
    wanted = tuple(features) if settings.loss in LOSSES else ()
    return replace(
        settings, outputs=settings.outputs or tuple(outputs), features=settings.features or wanted, seed=seed
    )
