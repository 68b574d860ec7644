"""An interface as JSON values: recorded at lowering, read back when an artifact opens."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch

from flowopt.errors import MalformedModel
from flowopt.program.interface import Interface, TensorSpec
from flowopt.program.program import Program

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}


def interface_of(program: Program) -> dict[str, object]:
    """The interface of a program as plain JSON values, for ``report.json`` and the model's own metadata."""
    return described_interface(program.interface)


def described_interface(interface: Interface) -> dict[str, object]:
    """An interface as plain JSON values; ``parsed_interface`` reads them back."""
    return {
        "inputs": [_described(one) for one in interface.inputs],
        "outputs": [_described(one) for one in interface.outputs],
        "dims": {name: {"minimum": low, "maximum": high} for name, (low, high) in interface.dims.items()},
        "single": interface.single,
    }


def parsed_interface(value: object) -> Interface:
    """The interface out of its JSON values.

    Raises:
        MalformedModel: the values are not what ``interface_of`` writes.
    """
    section = _mapping(value)
    inputs = tuple(_spec(i) for i in _sequence(section.get("inputs")))
    outputs = tuple(_spec(o) for o in _sequence(section.get("outputs")))
    single = section.get("single") is True
    if not outputs or (single and len(outputs) != 1):
        raise _malformed(f"{len(outputs)} outputs, single={single}")
    for specs in (inputs, outputs):
        if len({spec.name for spec in specs}) != len(specs):
            raise _malformed("two inputs or two outputs have one name")
    return Interface(
        inputs=inputs,
        outputs=outputs,
        dims={str(name): _range(limits) for name, limits in _mapping(section.get("dims", {})).items()},
        single=single,
    )


def parsed_interface_text(text: str) -> Interface:
    """The interface out of its JSON text.

    Raises:
        MalformedModel: it is no JSON, or not what ``interface_of`` describes.
    """
    try:
        value = json.loads(text)
    # The parser recurses: RecursionError where it is nested deeper than the stack.
    except (ValueError, RecursionError) as error:
        raise _malformed("it is no JSON") from error
    return parsed_interface(value)


def _described(one: TensorSpec) -> dict[str, object]:
    return {
        "name": one.name,
        "dtype": str(one.dtype).removeprefix("torch."),
        "shape": list(one.shape),
        "state": one.state,
    }


def _spec(value: object) -> TensorSpec:
    entry = _mapping(value)
    name, dtype, state = entry.get("name"), _DTYPES.get(str(entry.get("dtype"))), entry.get("state")
    sizes = _sequence(entry.get("shape"))
    shape = tuple(size for size in sizes if isinstance(size, str) or (_is_integer(size) and size >= 0))
    if not isinstance(name, str) or dtype is None or not isinstance(state, str | None) or len(shape) != len(sizes):
        raise _malformed(f"entry {_brief(entry)}")
    return TensorSpec(name, dtype, shape, state)


def _range(value: object) -> tuple[int, int | None]:
    limits = _mapping(value)
    low, high = limits.get("minimum"), limits.get("maximum")
    if not _is_integer(low) or not (high is None or _is_integer(high)):
        raise _malformed(f"range {_brief(limits)}")
    return low, high


def _is_integer(value: object) -> TypeGuard[int]:
    """JSON's true and false are no numbers, though Python's are."""
    return isinstance(value, int) and not isinstance(value, bool)


def _brief(value: Mapping[str, object]) -> str:
    return f"with the keys {sorted(value)[:10]}"


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _malformed(f"{type(value).__name__} where an object belongs")
    return value


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise _malformed(f"{type(value).__name__} where a list belongs")
    return value


def _malformed(what: str) -> MalformedModel:
    return MalformedModel(f"the artifact's interface is malformed: {what}", hint="build the artifact again")
