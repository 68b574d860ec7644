"""What a model takes and returns: checked at every call, of a program and of an artifact alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.errors import UserError


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
