"""The text form of pipelines: ``fold-batch-norm,fold-norm-affine:option=value`` or the name of a preset."""

from collections.abc import Iterable, Sequence
from typing import Any

from flowopt.errors import UserError
from flowopt.pipeline.presets import PRESETS
from flowopt.pipeline.registry import entries, pass_class, pass_entry

CANONICALIZE = "canonicalize-aten"
_MEASURED_FAMILIES = {
    "swap": "flowopt adapt MODEL --swap-norm unified --data FILE, or --recalibrate reestimate --data FILE",
    "linearize": "flowopt adapt MODEL --linearize hybrid --data FILE",
}


def parse_pipeline(text: str, *, skip: Iterable[str] = ()) -> list[Any]:
    """Pass objects of a preset or of a comma-separated list, without those to skip.

    Passes expect one spelling of every operator, so a list is run after ``canonicalize-aten`` even where it does
    not name it, unless ``skip`` does.

    Raises:
        UserError: an unknown pass, preset, option or value.
    """
    items = list(PRESETS[text]) if text in PRESETS else [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UserError(f"--passes {text!r} names no pass", hint=f"presets: {', '.join(PRESETS)}")
    return [parse_pass(item) for item in ordered(items, skip=skip)]


def ordered(items: Sequence[str], *, skip: Iterable[str] = ()) -> list[str]:
    """The texts of passes as they run: ``canonicalize-aten`` first, without those to skip.

    Raises:
        UserError: ``skip`` has an unknown name.
    """
    unwanted = set(skip)
    for name in sorted(unwanted - entries().keys()):
        pass_class(name)  # raises, naming the nearest
    first = [] if items[0].split(":")[0] == CANONICALIZE else [CANONICALIZE]
    return [item for item in (*first, *items) if item.split(":")[0] not in unwanted]


def parse_pass(text: str) -> Any:
    """One pass object from ``name`` or ``name:option=value:option=value``.

    Raises:
        UserError: an unknown pass, option or value; or a pass that does nothing without measurements on data.
    """
    name, *options = text.strip().split(":")
    cls = pass_class(name)
    measured = _MEASURED_FAMILIES.get(pass_entry(name).family)
    if measured is not None:
        raise UserError(
            f"{name} changes the model by what is measured on data, which a pipeline does not have",
            hint=measured,
        )
    fields = {f.name: f for f in cls.text_fields()}
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in fields:
            raise UserError(f"{name} has no option {key!r}", hint=f"options: {', '.join(fields) or 'none'}")
        if not equals:
            raise UserError(f"{name}:{key} needs a value", hint=f"{name}:{key}={fields[key].default}")
        values[key] = _converted(name, key, value, fields[key].default)
    return cls(**values)


def _converted(name: str, key: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise UserError(f"{name}:{key}={value!r} must be true or false")
    try:
        return type(default)(value)
    except ValueError as error:
        raise UserError(f"{name}:{key}={value!r} must be {type(default).__name__}") from error
