"""Which options of ``flowopt adapt`` belong to which of the things that it does."""

from collections.abc import Mapping
from typing import Final

import typer

from flowopt.errors import UserError

_SWAP, _LINEARIZE, _RECALIBRATE = "swap_norm", "linearize", "recalibrate"
_WITHOUT: Final = {
    _SWAP: "leave it out where norms are swapped",
    _LINEARIZE: "leave it out where attention is linearized",
    _RECALIBRATE: "leave it out: recalibration trains nothing",
}
# Of one method, or of those that train; the others are of all.
_OF: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    (_SWAP,): ("norms", "threshold", "settle"),
    (_LINEARIZE,): (
        "layers", "keep_softmax", "keep_by", "length", "window", "chunk", "form", "transfer_steps", "transfer_lr",
    ),
    (_SWAP, _LINEARIZE): (
        "force", "padding", "recover", "steps", "minutes", "lr", "optimizer", "loss", "schedule", "patience",
        "feature_weight", "lora", "checkpoint", "resume",
    ),
    (_RECALIBRATE,): ("target_weight",),
}  # fmt: skip


def method_of(given: Mapping[str, str | None]) -> str:
    """The one method that was asked for.

    Args:
        given: ``swap_norm``, ``linearize`` and ``recalibrate``.

    Raises:
        UserError: none or several.
    """
    chosen = [method for method, name in given.items() if name is not None]
    if len(chosen) != 1:
        raise UserError(
            "adapt does one thing: --swap-norm, --linearize or --recalibrate", hint="--swap-norm unified --data FILE"
        )
    return chosen[0]


def refuse_options_of_others(context: typer.Context, method: str) -> None:
    """Refuse what was given, here or in a file, and means nothing to the method.

    Raises:
        UserError: it says whose the option is.
    """
    for methods, names in _OF.items():
        for name in names:
            source = context.get_parameter_source(name)
            is_given = source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")
            if is_given and method not in methods:
                whose = " and ".join(_option(one) for one in methods)
                raise UserError(f"{_option(name)} is of {whose}", hint=_WITHOUT[method])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
