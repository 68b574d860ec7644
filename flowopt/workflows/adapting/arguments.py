"""What can be told of the arguments of ``adapt`` before anything is read or run."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.ops.attention import LINEARIZATIONS, linearization
from flowopt.passes.swap.swap_norm import TARGETS
from flowopt.program.program import Program
from flowopt.workflows.adapting.recalibrated import RECALIBRATIONS

_METHODS: Final[Mapping[str, Collection[str]]] = {
    "swap_norm": TARGETS,
    "linearize": LINEARIZATIONS,
    "recalibrate": RECALIBRATIONS,
}


def require_method(chosen: Mapping[str, str | None]) -> None:
    """Refuse anything but one method of adaptation, and one that is there.

    Args:
        chosen: ``swap_norm``, ``linearize`` and ``recalibrate`` as they were given.

    Raises:
        UserError: none, several, or another name.
    """
    given = {method: name for method, name in chosen.items() if name is not None}
    if len(given) != 1:
        raise UserError(
            "adapt does one thing", hint="swap_norm='unified', linearize='hedgehog', or recalibrate='select'"
        )
    ((method, name),) = given.items()
    known = _METHODS[method]
    if method == "linearize":
        linearization(name)
    elif name not in known:
        names: Mapping[str, None] = dict.fromkeys(known)
        raise UserError(f"{method}={name!r} is not known", hint=nearest(name, names, otherwise="one of"))


def require_options(method: str, given: Mapping[str, tuple[object, object]], *, of: str) -> None:
    """Refuse options of another method.

    Args:
        method: that was chosen.
        given: options by name, each with its default.
        of: the method that they belong to.

    Raises:
        UserError: one of them was given.
    """
    strange = next((name for name, (value, default) in given.items() if value != default), None)
    if method != of and strange is not None:
        raise UserError(f"{strange}={given[strange][0]!r} is of {of}", hint=f"leave it out where {method} is chosen")


def require_unseen(held_out: Any, data: Any) -> None:
    """Refuse to judge on the file that is trained on.

    Raises:
        UserError: it is the same.
    """
    if isinstance(held_out, str | Path) and str(held_out) == str(data):
        raise UserError(f"{held_out} is what recovery trains on, and nothing of it is unseen", hint="held_out=0.1")


def require_apart(checkpoint: Path | None, folder: Path) -> None:
    """Refuse a checkpoint inside of the artifact.

    Raises:
        UserError: it lies there.
    """
    if checkpoint is not None and folder.resolve() in checkpoint.resolve().parents:
        raise UserError(
            f"the checkpoint {checkpoint} lies in the artifact's folder {folder}",
            why="an artifact is written to a folder of its own",
            hint="a checkpoint elsewhere",
        )


def counted_outputs(program: Program, wanted: Collection[str]) -> tuple[str, ...]:
    """The floating outputs that count; all where none is named.

    Raises:
        UserError: a name that is none, or a model without any.
    """
    floating = [o.name for o in program.outputs if o.dtype.is_floating_point and o.state is None]
    unknown = [name for name in wanted if name not in floating]
    if unknown or not floating:
        raise UserError(
            f"no floating output {unknown[0]!r}" if unknown else "the model has no floating output to agree on",
            hint=f"its floating outputs: {', '.join(floating)}" if floating else "",
        )
    return tuple(wanted) or tuple(floating)


def row_sizes(program: Program, outputs: Iterable[str]) -> dict[str, int | str]:
    """How many elements a row of each output has."""
    shapes = {name: program.shape(name) for name in outputs}
    return {name: shape[-1] if len(shape) > 1 else 1 for name, shape in shapes.items()}


def data_name(data: Any) -> str:
    """A file's name without its folders, which are this machine's; a share or a function as they are; else empty."""
    if isinstance(data, str | Path):
        return Path(data).name if Path(data).exists() else str(data)
    return str(data) if isinstance(data, int | float) else ""
