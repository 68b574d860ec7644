"""What an artifact takes and returns: recorded at lowering, checked at every call."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.errors import MalformedModel, UserError
from flowopt.program.program import Input, Output, Program

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one input or output; free sizes by name, derived ones as an expression of names."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    state: str | None = None

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        optional = " (state, optional)" if self.state is not None else ""
        return f"{self.name}: {kind}[{', '.join(map(str, self.shape))}]{optional}"


@dataclass(frozen=True, slots=True)
class Interface:
    """Inputs and outputs in order, the range of each free dimension, and whether the result is a bare tensor."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, tuple[int, int | None]]
    single: bool

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Tensor]:
        """Checked inputs by name; state that is not given is left out, for the model's own default.

        Raises:
            UserError: unknown, missing or doubled inputs, a wrong dtype, rank or size; it says what the model takes.
        """
        free = [i for i in self.inputs if i.state is None]
        if len(args) > len(free):
            raise self._refusal(f"{len(args)} positional inputs, but the model takes {len(free)}")
        given: dict[str, object] = {i.name: a for i, a in zip(free, args, strict=False)}
        twice = sorted(given.keys() & kwargs.keys())
        unknown = sorted(kwargs.keys() - {i.name for i in self.inputs})
        if twice or unknown:
            raise self._refusal(f"inputs {'given twice' if twice else 'unknown'}: {', '.join(twice or unknown)}")
        given |= kwargs
        missing = [i.name for i in free if i.name not in given]
        if missing:
            raise self._refusal(f"missing inputs: {', '.join(missing)}")
        bound = {i.name: self._checked(i, given[i.name]) for i in self.inputs if i.name in given}
        self._require_dimensions(bound)
        return bound

    def result(self, outputs: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The caller's view: the bare tensor where the model returned one, else every output by dotted name."""
        return outputs[self.outputs[0].name] if self.single else dict(outputs)

    def _checked(self, spec: TensorSpec, value: object) -> Tensor:
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._refusal(f"input {spec.name!r} is {type(value).__name__}, not a tensor") from error
        fits = tensor.dim() == len(spec.shape) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape, tensor.shape, strict=True)
        )
        if tensor.dtype != spec.dtype or not fits:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise self._refusal(f"input {spec.name!r} is {kind}{list(tensor.shape)}, but the model takes {spec}")
        return tensor

    def _require_dimensions(self, bound: Mapping[str, Tensor]) -> None:
        """One size per dimension name, inside its range. Derived sizes (``2*batch``) are left to the runtime."""
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            if spec.name not in bound:
                continue
            for axis, name in enumerate(spec.shape):
                if not isinstance(name, str) or name not in self.dims:
                    continue
                size = bound[spec.name].shape[axis]
                known, where = sizes.setdefault(name, (size, spec.name))
                if known != size:
                    raise self._refusal(f"dimension {name!r} is {known} in {where!r} and {size} in {spec.name!r}")
                low, high = self.dims[name]
                if size < low or (high is not None and size > high):
                    limits = f"{low} to {high}" if high is not None else f"{low} or more"
                    raise self._refusal(f"dimension {name!r} is {size} in {spec.name!r}, but the model takes {limits}")

    def _refusal(self, message: str) -> UserError:
        return UserError(message, hint=f"the model takes {'; '.join(map(str, self.inputs))}")


def output_shapes(program: Program) -> tuple[tuple[int | str, ...], ...]:
    """Shape of every output, by position: an output may have the name of an input."""
    outputs = tuple(dataclasses.replace(o, name=f"<output {i}>") for i, o in enumerate(program.outputs))
    numbered = dataclasses.replace(program, outputs=outputs)
    return tuple(numbered.shape(o.name) for o in outputs)


def interface_of(program: Program) -> dict[str, object]:
    """The interface of a program as plain JSON values, for ``report.json`` and the model's own metadata."""
    shapes = [program.shape(i.name) for i in program.inputs]
    return {
        "inputs": [_described(i, s) for i, s in zip(program.inputs, shapes, strict=True)],
        "outputs": [_described(o, s) for o, s in zip(program.outputs, output_shapes(program), strict=True)],
        "dims": {d.name: {"minimum": d.minimum, "maximum": d.maximum} for d in program.dims},
        "single": program.single and len(program.outputs) == 1,
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


def _described(one: Input | Output, shape: tuple[int | str, ...]) -> dict[str, object]:
    return {
        "name": one.name,
        "dtype": str(one.dtype).removeprefix("torch."),
        "shape": list(shape),
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
