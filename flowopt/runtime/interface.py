"""An interface as JSON values: recorded at lowering, read back when an artifact opens."""

from collections.abc import Mapping, Sequence

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
    interface = program.interface
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
    outputs = tuple(_spec(o) for o in _sequence(section.get("outputs")))
    single = section.get("single") is True
    if not outputs or (single and len(outputs) != 1):
        raise _malformed(f"{len(outputs)} outputs, single={single}")
    return Interface(
        inputs=tuple(_spec(i) for i in _sequence(section.get("inputs"))),
        outputs=outputs,
        dims={str(name): _range(limits) for name, limits in _mapping(section.get("dims", {})).items()},
        single=single,
    )


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
    shape = tuple(s for s in _sequence(entry.get("shape")) if isinstance(s, (int, str)))
    if not isinstance(name, str) or dtype is None or not isinstance(state, str | None):
        raise _malformed(f"entry {dict(entry)}")
    return TensorSpec(name, dtype, shape, state)


def _range(value: object) -> tuple[int, int | None]:
    limits = _mapping(value)
    low, high = limits.get("minimum"), limits.get("maximum")
    if not isinstance(low, int) or not isinstance(high, int | None):
        raise _malformed(f"range {dict(limits)}")
    return low, high


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
