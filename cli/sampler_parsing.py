"""What the texts of ``--guidance``, ``--set``, ``--unconditional`` and ``--clamp`` mean."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from flowopt.errors import UserError
from flowopt.nearest import nearest

if TYPE_CHECKING:
    from flowopt.sampling.guidance import ClassifierFree

GuidanceOrder = Literal["unconditional-first", "conditional-first"]
Setting = float | str | bool | tuple[float, ...]

_KINDS: dict[str, Literal["from-unconditional", "from-conditional"]] = {
    "cfg": "from-unconditional",
    "cfg-original": "from-conditional",
}
_KEY = re.compile(r"[A-Za-z_]\w*")
# What has an option of its own, or none.
_ELSEWHERE = {
    "steps": "--steps",
    "schedule": "--schedule",
    "solver": "--solver",
    "scheduler": "--scheduler",
    "convention": "--convention",
}


def parse_guidance(
    text: str | None, unconditional: Sequence[str], channels: int | None, order: GuidanceOrder | None
) -> "ClassifierFree | None":
    """Guidance out of ``cfg:SCALE`` and the options that go with it.

    Raises:
        UserError: a text of another form, or options for a guidance that is not asked for.
    """
    filled = _numbers_by_name("--unconditional", unconditional, "label=1000")
    if text is None:
        given = [
            name
            for name, is_given in (
                ("--unconditional", bool(filled)),
                ("--guidance-channels", channels is not None),
                ("--guidance-order", order is not None),
            )
            if is_given
        ]
        if given:
            raise UserError(f"{given[0]} without --guidance", hint="--guidance cfg:4")
        return None
    from flowopt.sampling.guidance import ClassifierFree

    kind, _, scale = text.partition(":")
    if kind not in _KINDS:
        raise UserError(
            f"there is no guidance {kind!r}", hint=f"{nearest(kind, _KINDS, otherwise='one of')}\n{_GUIDANCE}"
        )
    numbers = None if scale == "input" else parse_numbers(scale)
    if numbers is None and scale != "input":
        raise UserError(f"--guidance {text!r} has no scale", hint=_GUIDANCE)
    return ClassifierFree(
        numbers[0] if numbers is not None and len(numbers) == 1 else numbers,
        filled,
        difference=_KINDS[kind],
        order=order or "unconditional-first",
        channels=channels,
    )


_GUIDANCE = "--guidance cfg:4, one scale per evaluation (cfg:1,4,4,1), or cfg:input for a scale that is an input"


def parse_settings(texts: Sequence[str]) -> dict[str, Setting]:
    """Options of a solver, a convention or a scheduler out of ``name=value``.

    A value is ``true``, ``false``, a number, a list of numbers (``1,0.5``) or a word.

    Raises:
        UserError: a text of another form, a name that is given twice or that has an option of its own.
    """
    settings: dict[str, Setting] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _KEY.fullmatch(name) or not value:
            raise UserError(f"--set {text!r} is not name=value", hint="such as --set time_scale=1")
        if name in _ELSEWHERE:
            raise UserError(f"--set {text!r}: {name} has an option of its own", hint=f"{_ELSEWHERE[name]} {value}")
        if name == "inverts":
            raise UserError("an inversion is made from Python", hint="flowopt.sampling.make_sampler(..., inverts=True)")
        if name in settings:
            raise UserError(f"--set names {name} twice")
        settings[name] = _setting(value)
    return settings


def parse_clamp(text: str | None) -> tuple[float, float] | None:
    """Smallest and largest number out of ``low..high``.

    Raises:
        UserError: a text of another form, or an empty range.
    """
    if text is None:
        return None
    low, _, high = text.partition("..")
    ends = [parse_numbers(low), parse_numbers(high)]
    if any(end is None or len(end) != 1 for end in ends):
        raise UserError(f"--clamp {text!r} is not low..high", hint="such as --clamp -1..1")
    smallest, largest = (end[0] for end in ends if end is not None)
    if not smallest < largest:
        raise UserError(f"--clamp {text!r} leaves no number", hint="such as --clamp -1..1")
    return smallest, largest


def parse_numbers(text: str) -> tuple[float, ...] | None:
    """Numbers between commas, or None."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return None


def _numbers_by_name(option: str, texts: Sequence[str], example: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        numbers = parse_numbers(value)
        if not name or numbers is None or len(numbers) != 1:
            raise UserError(f"{option} {text!r} is not an input's name, = and a number", hint=f"{option} {example}")
        if name in found:
            raise UserError(f"{option} names {name} twice")
        found[name] = numbers[0]
    return found


def _setting(text: str) -> Setting:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    numbers = parse_numbers(text)
    if numbers is None:
        return text
    return numbers[0] if len(numbers) == 1 else numbers
