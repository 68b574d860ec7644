"""What the texts of ``--dynamic``, ``--shape``, ``--limit``, ``--require`` and ``--at`` mean."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowopt.errors import UserError
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.program.loading.input_spec import parse_input_spec

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_RANGE = re.compile(r"(?P<places>.*):(?P<low>\d+)\.\.(?P<high>\d*)")
_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[KMG]i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_IN_BYTES = ("memory", "json")
_FORM = "write name=input:axis[,input:axis...][:min..max], such as --dynamic batch=ids:0,mask:0:1..64"


@dataclass(frozen=True, slots=True)
class FreeDimensions:
    """``dynamic`` and ``dims`` of ``flowopt.capture``."""

    dynamic: dict[str, dict[int, str]]
    dims: dict[str, tuple[int, int | None]]

    def capture_options(self) -> dict[str, Any]:
        """Both, when anything was asked for: together they replace those of a factory."""
        return {"dynamic": self.dynamic, "dims": self.dims} if self.dynamic else {}


def parse_dynamic(specs: Sequence[str]) -> FreeDimensions:
    """Free dimensions out of ``name=input:axis[,input:axis...][:min..max]``, one text per dimension.

    Raises:
        UserError: a text of another form, a dimension or an axis that is named twice, an empty range.
    """
    parsed = FreeDimensions({}, {})
    for spec in specs:
        name, equals, rest = spec.partition("=")
        if not equals or not _IDENTIFIER.fullmatch(name):
            raise UserError(f"--dynamic {spec!r} does not start with a name and =", hint=_FORM)
        if any(name in axes.values() for axes in parsed.dynamic.values()):
            raise UserError(
                f"--dynamic names the dimension {name!r} twice",
                hint=f"name all its places at once: --dynamic {name}=input:axis,input:axis",
            )
        places, size_range = _split_range(spec, rest)
        if size_range is not None:
            parsed.dims[name] = size_range
        for place in places.split(","):
            _add_place(parsed.dynamic, spec, name, place)
    return parsed


def parse_shapes(texts: Sequence[str]) -> dict[str, str]:
    """Input name to shape, out of ``name=sizes[:dtype][[low..high]]``.

    Raises:
        UserError: a text of another form, or an input that is named twice.
    """
    shapes: dict[str, str] = {}
    for text in texts:
        name, equals, shape = text.partition("=")
        if not equals or not _IDENTIFIER.fullmatch(name):
            raise UserError(f"--shape {text!r} does not start with an input's name and =", hint="such as --shape x=1x3")
        if name in shapes:
            raise UserError(f"--shape names {name} twice")
        parse_input_spec(name, shape)
        shapes[name] = shape
    return shapes


def parse_limits(texts: Sequence[str]) -> Limits:
    """Limits out of ``name=value``; bytes may end in KB, MB or GB.

    Raises:
        UserError: a text of another form, or an unknown limit.
    """
    names = [field.name for field in dataclasses.fields(Limits)]
    values: dict[str, int] = {}
    for text in texts:
        name, _, value = text.partition("=")
        found = _AMOUNT.fullmatch(value)
        if name not in names or found is None:
            raise UserError(
                f"--limit {text!r} is not name=value", hint=f"one of {', '.join(names)}; such as --limit memory=16GB"
            )
        if name not in _IN_BYTES and not value.isdecimal():
            raise UserError(f"--limit {text!r}: {name} counts {name}, in whole numbers", hint=f"--limit {name}=500")
        values[name] = int(float(found["number"]) * _UNITS[(found["unit"] or "").upper()])
    return dataclasses.replace(DEFAULT_LIMITS, **values)


def parse_require(texts: Sequence[str]) -> dict[str, int]:
    """Pass name to the smallest number of rewrites, out of ``name:count``.

    Raises:
        UserError: a text of another form, or a pass that is named twice.
    """
    required: dict[str, int] = {}
    for text in texts:
        name, _, count = text.partition(":")
        if not name or not count.isdecimal():
            raise UserError(f"--require {text!r} is not name:count", hint="such as --require fold-batch-norm:12")
        if name in required:
            raise UserError(f"--require names {name} twice")
        required[name] = int(count)
    return required


def parse_sizes(text: str) -> dict[str, int]:
    """Sizes of free dimensions out of ``name=size,name=size``.

    Raises:
        UserError: a text of another form, or a dimension that is named twice.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if not _IDENTIFIER.fullmatch(name) or not size.isdecimal():
            raise UserError(f"--at {text!r} is not name=size,name=size", hint="such as --at batch=1,sequence=32")
        if name in sizes:
            raise UserError(f"--at {text!r} names {name} twice", hint="one --at for each set of sizes")
        sizes[name] = int(size)
    return sizes


def _split_range(spec: str, rest: str) -> tuple[str, tuple[int, int | None] | None]:
    if ".." not in rest:
        return rest, None
    found = _RANGE.fullmatch(rest)
    if found is None:
        raise UserError(f"--dynamic {spec!r}: the range is not min..max", hint=_FORM)
    low, high = int(found["low"]), int(found["high"]) if found["high"] else None
    if high is not None and low >= high:
        raise UserError(
            f"--dynamic {spec!r}: {low}..{high} leaves nothing free", hint="leave out a dimension that has one size"
        )
    return found["places"], (low, high)


def _add_place(dynamic: dict[str, dict[int, str]], spec: str, name: str, place: str) -> None:
    input_name, _, axis = place.rpartition(":")
    if not _IDENTIFIER.fullmatch(input_name) or not axis.isdecimal():
        raise UserError(f"--dynamic {spec!r}: {place!r} is not input:axis", hint=_FORM)
    axes = dynamic.setdefault(input_name, {})
    if int(axis) in axes:
        raise UserError(f"--dynamic gives axis {axis} of {input_name!r} two names, {axes[int(axis)]!r} and {name!r}")
    axes[int(axis)] = name
