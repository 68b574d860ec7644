"""Checks of single values: sizes, dtypes, devices, the arguments of operators.

Source: torch/_export/serde/schema.py, schema version 8 (torch 2.11 to 2.13).
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.pt2.checks import (
    Check,
    Place,
    boolean,
    identifier,
    integer,
    list_of,
    malformed,
    name,
    nothing,
    number,
    one_of,
    optional,
    record,
    text,
    union,
)
from flowopt.formats.pt2.expressions import clean_expression
from flowopt.formats.pt2.operators import clean_operator

STRIDED: Final = 7
# Six digits: torch counts up to the number of a symbol that has no value yet, one by one.
SYMBOL: Final = re.compile(r"[a-z_]{1,8}[0-9]{1,6}")
_MOST_AXES: Final = 64
_DEVICE: Final = re.compile(r"[a-z]{2,16}")
_OWNER: Final = "if you trust its author; else ask for .safetensors or .onnx"


def device(value: Any, place: Place) -> dict[str, Any]:
    """Any device becomes the CPU, so that what was exported on a GPU loads everywhere."""
    checked = record({"type": name}, {"index": optional(integer)})(value, place)
    if checked["type"] == "meta" or not _DEVICE.fullmatch(checked["type"]):
        raise malformed(place, "a device that holds weights", checked["type"])
    return {"type": "cpu", "index": None}


def expression(value: Any, place: Place) -> str:
    return clean_expression(text(value, place), str(place))


_HINT: Final = optional(union({"as_int": integer, "as_bool": boolean, "as_float": number}))
SYMBOLIC: Final = record({"expr_str": expression}, {"hint": _HINT})
SYM_INT: Final = union({"as_expr": SYMBOLIC, "as_int": integer})
# 0 stands for the unknown in each of the three enumerations.
SCALAR_TYPE: Final = one_of(*range(1, 14), *range(28, 36))
_MEMORY_FORMAT: Final = one_of(1, 2, 3, 4)
NAMED: Final = record({"name": identifier})


def layout(value: Any, place: Place) -> int:
    if integer(value, place) not in range(1, STRIDED + 1):
        raise malformed(place, "a layout", value)
    if value != STRIDED:
        raise MalformedModel(
            "the model holds sparse tensors, which flowopt does not handle",
            why=str(place),
            hint="call .to_dense() on them in the model, and export it again",
        )
    return STRIDED


def _axes(check: Check) -> Check:
    return list_of(check, most=_MOST_AXES)


TENSOR_META: Final = record(
    {
        "dtype": SCALAR_TYPE,
        "sizes": _axes(SYM_INT),
        "requires_grad": boolean,
        "device": device,
        "strides": _axes(SYM_INT),
        "storage_offset": SYM_INT,
        "layout": layout,
    }
)
CONSTANT: Final = union(
    {"as_none": boolean, "as_int": integer, "as_float": number, "as_string": text, "as_bool": boolean}
)


def _sym(check: Check, kind: str) -> Check:
    return union({"as_name": identifier, kind: check})


def no_object(value: Any, place: Place) -> Any:
    raise Untrusted(
        "the file holds an object of a custom class",
        why=f"{place}: such objects are stored as pickles, and reading a pickle can run any program",
        hint=_OWNER,
        retry=(("--trust", "code"),),
    )


PLAIN_ARGUMENTS: Final[Mapping[str, Check]] = {
    "as_none": nothing,
    "as_tensor": NAMED,
    "as_tensors": list_of(NAMED),
    "as_int": integer,
    "as_ints": list_of(integer),
    "as_float": number,
    "as_floats": list_of(number),
    "as_string": text,
    "as_strings": list_of(text),
    "as_sym_int": _sym(integer, "as_int"),
    "as_sym_ints": list_of(_sym(integer, "as_int")),
    "as_scalar_type": SCALAR_TYPE,
    "as_memory_format": _MEMORY_FORMAT,
    "as_layout": layout,
    "as_device": device,
    "as_bool": boolean,
    "as_bools": list_of(boolean),
    "as_sym_bool": _sym(boolean, "as_bool"),
    "as_sym_bools": list_of(_sym(boolean, "as_bool")),
    "as_optional_tensors": list_of(union({"as_tensor": NAMED, "as_none": boolean})),
    "as_optional_tensor": union({"as_tensor": NAMED, "as_none": boolean}),
    "as_operator": lambda value, place: clean_operator(text(value, place), str(place)),
    "as_sym_float": _sym(number, "as_float"),
    "as_sym_floats": list_of(_sym(number, "as_float")),
    "as_complex": record({"real": number, "imag": number}),
    "as_nested_tensors": list_of(list_of(NAMED)),
    "as_int_lists": list_of(list_of(integer)),
    "as_float_lists": list_of(list_of(number)),
    "as_custom_obj": no_object,
}
