"""Building blocks of the document's schema: each takes a JSON value and gives back a clean one, or refuses.

What a check does not name does not get through: unknown keys of an object are left out, unknown kinds are refused.
"""

import keyword
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flowopt.errors import MalformedModel, Untrusted

Check = Callable[[Any, "Place"], Any]
_LARGEST_INTEGER: Final = 2**63
_MOST_NAME_CHARACTERS: Final = 1_000
# Names of attributes are free, as those of a ModuleDict are, but for what ends a text of Python, and calls.
_ATTRIBUTE: Final = re.compile(r"[\w\-+:/@|#~ ]+")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the document, for messages: a linked path that costs nothing until somebody reads it."""

    name: str
    parent: "Place | None" = None

    def __truediv__(self, name: object) -> "Place":
        return Place(str(name), self)

    def __str__(self) -> str:
        parts: list[str] = []
        place: Place | None = self
        while place is not None:
            parts.append(place.name)
            place = place.parent
        text = "/".join(reversed(parts))
        return text if len(text) <= 200 else "..." + text[-197:]


def malformed(place: Place, wanted: str, value: object) -> MalformedModel:
    """The refusal of a value that is of another form than the schema's."""
    shown = repr(value) if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__
    return MalformedModel(
        "the graph's description is not of the form that torch.export writes",
        why=f"{place}: {shown[:80]} is not {wanted}",
        hint="the file is damaged or of another version of torch: export the model again with torch.export.save",
    )


def integer(value: Any, place: Place) -> int:
    """A 64-bit integer; booleans are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        raise malformed(place, "a 64-bit integer", value)
    return value


def boolean(value: Any, place: Place) -> bool:
    if not isinstance(value, bool):
        raise malformed(place, "true or false", value)
    return value


def number(value: Any, place: Place) -> float | str:
    """A float; the three that JSON lacks are words."""
    if value in ("NaN", "Infinity", "-Infinity"):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise malformed(place, "a number", value)
    return value


def text(value: Any, place: Place) -> str:
    """Any text; control characters become their escapes, because texts end up on terminals."""
    if not isinstance(value, str):
        raise malformed(place, "a text", value)
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in value)


def name(value: Any, place: Place) -> str:
    """A name: one printable line."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _MOST_NAME_CHARACTERS:
        raise malformed(place, "a name", value)
    return value


def identifier(value: Any, place: Place) -> str:
    """The name of a value or an argument: torch writes it, as it is, into Python that it then runs."""
    checked = name(value, place)
    # Python reads names in their normal form: another spelling of ``x`` would be a second value for torch's graph, and
    # the same variable in the code that it generates.
    is_normal = unicodedata.normalize("NFKC", checked) == checked
    if not checked.isidentifier() or keyword.iskeyword(checked) or not is_normal:
        raise _no_name(place, checked)
    return checked


def argument_name(value: Any, place: Place) -> str:
    """The name of an operator's argument: empty where it is positional; that of a few is a keyword (``from``)."""
    if value == "" or (isinstance(value, str) and keyword.iskeyword(value)):
        return str(value)
    return identifier(value, place)


def attribute_path(value: Any, place: Place) -> str:
    """The dotted name of a parameter or a buffer: torch writes it into Python, too, part by part."""
    checked = name(value, place)
    parts = checked.split(".")
    if not all(_ATTRIBUTE.fullmatch(part) and not part.startswith("__") for part in parts):
        raise _no_name(place, checked)
    return checked


def _no_name(place: Place, value: str) -> Untrusted:
    return Untrusted(
        "the file uses a text as a name that is none",
        why=f"{place}: {value[:80]!r}; torch would write it into Python code and run that",
        hint="do not load it: torch.export writes plain names; ask for .safetensors or a new export",
    )


def nothing(value: Any, place: Place) -> None:
    """A part that is left out of the clean document."""
    return None


def optional(check: Check) -> Check:
    return lambda value, place: None if value is None else check(value, place)


def one_of(*values: object) -> Check:
    def checked(value: Any, place: Place) -> Any:
        if value not in values or isinstance(value, bool):
            raise malformed(place, "one of the values that torch writes", value)
        return value

    return checked


def list_of(check: Check, most: int | None = None) -> Check:
    def checked(value: Any, place: Place) -> list[Any]:
        if not isinstance(value, list) or (most is not None and len(value) > most):
            raise malformed(place, "a list" if most is None else f"a list of at most {most}", value)
        return [check(item, place / i) for i, item in enumerate(value)]

    return checked


def map_of(check: Check) -> Check:
    def checked(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise malformed(place, "an object", value)
        return {name(key, place): check(item, place / key) for key, item in value.items()}

    return checked


def record(required: Mapping[str, Check], optional_fields: Mapping[str, Check] | None = None) -> Check:
    """An object with these fields; others are left out."""
    known = dict(optional_fields or {})

    def checked(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise malformed(place, "an object", value)
        missing = [field for field in required if field not in value]
        if missing:
            raise malformed(place, f"complete: {missing[0]!r} is missing", value)
        checks = {**required, **{field: check for field, check in known.items() if field in value}}
        return {field: check(value[field], place / field) for field, check in checks.items()}

    return checked


def union(kinds: Mapping[str, Check]) -> Check:
    """An object with exactly one field, which says what kind of value it is."""

    def checked(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) != 1 or not kinds.keys() >= value.keys():
            raise malformed(place, f"one of {', '.join(kinds)}", value)
        ((kind, item),) = value.items()
        return {kind: kinds[kind](item, place / kind)}

    return checked
