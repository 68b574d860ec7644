"""What can be told of a recovery before anything is computed."""

from collections.abc import Collection
from pathlib import Path

from flowopt.errors import UserError
from flowopt.recovery.checkpoint import read_facts, understood
from flowopt.recovery.identity import require_same_settings
from flowopt.recovery.optimizers import require_optimizer
from flowopt.recovery.settings import RecoverySettings


def require_beginning(
    settings: RecoverySettings, checkpoint: Path | None, *, resume: bool, unknown: Collection[str] = ()
) -> None:
    """Refuse a recovery that cannot begin, or cannot go on from its checkpoint.

    Args:
        settings: what is done.
        checkpoint: file to save in, and to go on from.
        resume: whether it may be there; it need not.
        unknown: names of settings that are not known yet.

    Raises:
        MissingDependency: of the optimizer.
        UserError: a checkpoint that would be overwritten, none to resume from, or one of other settings.
        MalformedModel: a checkpoint that is none.
    """
    require_optimizer(settings.optimizer)
    if resume and checkpoint is None:
        raise UserError("nothing to resume from", hint="name the checkpoint of the first run")
    if checkpoint is None or not checkpoint.exists():
        return
    if not resume:
        raise UserError(f"{checkpoint} is there already", hint="resume from it, remove it, or choose another file")
    facts = read_facts(checkpoint)
    with understood(checkpoint):
        require_same_settings(checkpoint, facts["identity"], settings, unknown)
