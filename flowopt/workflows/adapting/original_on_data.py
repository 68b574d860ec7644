"""The original on the data that it is measured on, before anything is made of it."""

from collections.abc import Callable, Collection

from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.original_run import require_original_runs
from flowopt.workflows.adapting.recovery_plan import TRANSFER, RecoveryPlan


def require_original(
    program: Program,
    data: Data,
    plan: RecoveryPlan,
    *,
    outputs: Collection[str],
    calibration: int,
    dry_run: bool,
    on_progress: Callable[[str], None],
) -> None:
    """Run the original on the batches for calibration and, but for a dry run, on the held-out ones.

    Args:
        program: the original.
        data: of which nothing else is read; what is only trained on is told of when its batch comes.
        plan: transfer may look at more batches.
        outputs: that count.
        calibration: number of batches.
        dry_run: nothing will be compared.
        on_progress: gets one line.

    Raises:
        UserError: a batch that it does not take, or a sample that it gives NaN for.
    """
    on_progress("running the original on the data")
    count = max(calibration, plan.transfer_batches) if TRANSFER in plan.ordered and not dry_run else calibration
    for at, batch in enumerate(data.calibration(count)):
        require_original_runs(program, batch.inputs, outputs, where=f"batch {at} of the training data")
    if dry_run:
        return
    for at, batch in enumerate(data.held_out()):
        require_original_runs(program, batch.inputs, outputs, where=f"batch {at} of the held-out data")
