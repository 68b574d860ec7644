"""The form of ``tuned.json``.

{"schema_version": 1, "model": "<sha256>", "target": "cpu",
 "runtime": {"name": "onnxruntime", "version": "1.20.0", "threads": 2},
 "passes": {"merge-parallel-linears": {"<site>": {
     "input_shape": [1, 16, 768], "outputs": [768, 768, 768], "dtype": "float32", "has_bias": true,
     "merge": true, "gain": 1.07}}}}
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch

from flowopt.analysis.linear_group import LinearGroup
from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.errors import UserError
from flowopt.formats.printable import printable

MERGE: Final = "merge-parallel-linears"
SCHEMA_VERSION: Final = 1
_DTYPES: Final = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SITE: Final = re.compile(r"[A-Za-z_]\w{0,999}", re.ASCII)
_MOST: Final = 2**40
_CHOICE: Final = ("input_shape", "outputs", "dtype", "has_bias", "merge", "gain")

# The fields of ``Tuned`` by name.
Document = dict[str, Any]


def document(fields: Document) -> Document:
    """The JSON value of these fields."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": fields["model"],
        "target": fields["target"],
        "runtime": {"name": fields["runtime"], "version": fields["version"], "threads": fields["threads"]},
        "passes": {MERGE: {choice.site: _written(choice) for choice in fields["merges"]}},
    }


def parsed(value: object) -> Document:
    """The fields out of a JSON value that holds them and nothing else.

    Raises:
        UserError: says which part is not as expected.
    """
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise UserError(f"its schema_version is {_shown(version)}, and this flowopt reads {SCHEMA_VERSION}")
    top = _object(value, "the file", ("schema_version", "model", "target", "runtime", "passes"))
    runtime = _object(top["runtime"], "runtime", ("name", "version", "threads"))
    choices = _mapping(_object(top["passes"], "passes", (MERGE,))[MERGE], MERGE)
    return {
        "model": _text(top["model"], "model", _DIGEST),
        "target": _text(top["target"], "target"),
        "runtime": _text(runtime["name"], "runtime/name"),
        "version": _text(runtime["version"], "runtime/version"),
        "threads": _size(runtime["threads"], "runtime/threads"),
        "merges": tuple(_read(site, choice) for site, choice in choices.items()),
    }


def _written(choice: MeasuredMerge) -> Document:
    group = choice.group
    return {
        "input_shape": list(group.input_shape),
        "outputs": list(group.outputs),
        "dtype": str(group.dtype).removeprefix("torch."),
        "has_bias": group.has_bias,
        "merge": choice.merge,
        "gain": choice.gain,
    }


def _read(site: str, value: object) -> MeasuredMerge:
    where = f"{MERGE}/{_text(site, 'the name of a site', _SITE)}"
    fields = _object(value, where, _CHOICE)
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in _DTYPES:
        raise _wrong(f"{where}/dtype", fields["dtype"], f"one of {', '.join(_DTYPES)}")
    outputs = _sizes(fields["outputs"], f"{where}/outputs")
    if len(outputs) < 2:
        raise _wrong(f"{where}/outputs", fields["outputs"], "the features of two layers or more")
    group = LinearGroup(
        _sizes(fields["input_shape"], f"{where}/input_shape"),
        outputs,
        _DTYPES[fields["dtype"]],
        _boolean(fields["has_bias"], f"{where}/has_bias"),
    )
    gain = fields["gain"]
    if not isinstance(gain, (int, float)) or isinstance(gain, bool) or not 0 < gain < math.inf:
        raise _wrong(f"{where}/gain", gain, "a positive number")
    return MeasuredMerge(site, group, _boolean(fields["merge"], f"{where}/merge"), float(gain))


def _object(value: object, where: str, keys: tuple[str, ...]) -> Mapping[str, object]:
    found = _mapping(value, where)
    for key in keys:
        if key not in found:
            raise UserError(f"{where} lacks {key!r}")
    for key in found:
        if key not in keys:
            raise UserError(f"{where} has {_shown(key)}, which this flowopt does not know; it knows {', '.join(keys)}")
    return found


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def _text(value: object, where: str, pattern: re.Pattern[str] = re.compile(r"[\w.+-]{1,80}", re.ASCII)) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _wrong(where, value, "a plain word")
    return value


def _sizes(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 1000:
        raise _wrong(where, value, "a list of sizes")
    return tuple(_size(one, f"{where}/{at}") for at, one in enumerate(value))


def _size(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
        raise _wrong(where, value, "a positive whole number")
    return value


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _wrong(where: str, value: object, wanted: str) -> UserError:
    return UserError(f"{where} is {_shown(value)}, not {wanted}")


def _shown(value: object) -> str:
    return printable(repr(value), 60)
