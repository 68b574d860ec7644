"""Arrays by name, made fit for a model or refused."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.formats.printable import printable
from flowopt.program.interface import Interface, TensorSpec
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.data.batch_axis import batch_axis

LABELS: Final = "labels"
_MOST_NAMES: Final = 8
# What training computes in takes every float; rounding to anything narrower is the user's to do.
_ROUNDED_TO: Final = (torch.float32, torch.float64)


@final
class Fitting:
    """What arrays must be like: the model's inputs by name, and anything else beside them, all equally long."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._specs = {spec.name: spec for spec in interface.inputs if spec.state is None}
        self.axis = batch_axis(interface)

    def batch(self, where: str, value: object) -> Batch:
        """The arrays as a batch, in the model's dtypes.

        Args:
            where: file or source, for messages.
            value: arrays by name; or in the order of the model's inputs, labels behind them; or one array.

        Raises:
            UserError: an input is missing, has another kind of numbers or other sizes, holds a NaN or an infinity, or
                arrays differ in length.
        """
        arrays = {name: _tensor(where, name, array) for name, array in self._named(where, value).items()}
        self._require_inputs(where, arrays)
        if self.axis is not None:
            _require_equal_lengths(where, arrays)
        for name, array in arrays.items():
            _require_finite(where, name, array)
        inputs = {name: self._cast(where, spec, arrays[name]) for name, spec in self._specs.items()}
        self._require_sizes(where, inputs)
        return Batch(inputs, {name: array for name, array in arrays.items() if name not in inputs})

    def _named(self, where: str, value: object) -> Mapping[str, object]:
        names = list(self._specs)
        if isinstance(value, Mapping):
            return {str(name): array for name, array in value.items()}
        parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        if not parts or len(parts) > len(names) + 1 or isinstance(value, str | bytes):
            what = f"{len(parts)} arrays" if isinstance(value, list | tuple) else type(value).__name__
            raise UserError(
                f"{where} is {what}, not arrays by name",
                hint=f"yield a dictionary with the inputs {', '.join(names)}, or a tuple of them in that order, "
                f"with or without {LABELS} at its end",
            )
        return dict(zip([*names, LABELS], parts, strict=False))

    def _require_inputs(self, where: str, arrays: Mapping[str, Tensor]) -> None:
        missing = [name for name in self._specs if name not in arrays]
        if not missing:
            return
        if not arrays:
            what = "holds no arrays"
        elif len(missing) == len(self._specs):
            what = f"holds no array with an input's name, but {_listed(arrays)}"
        else:
            what = f"lacks {_listed(missing)}; it holds {_listed(arrays)}"
        raise self._refusal(where, what)

    def _cast(self, where: str, spec: TensorSpec, array: Tensor) -> Tensor:
        if array.dtype == spec.dtype:
            return array
        found, wanted = (str(d).removeprefix("torch.") for d in (array.dtype, spec.dtype))
        if _kind(array.dtype) != _kind(spec.dtype):
            raise self._refusal(f"{where}:", f"{spec.name!r} is {found}, but the model takes {wanted}")
        if not _fits(array, spec.dtype):
            raise UserError(
                f"{where}: {spec.name!r} is {found}, and some of its values do not exist in {wanted}, "
                "which the model takes",
                hint=f"store it as {wanted}, rounded as it should be",
            )
        return array.to(spec.dtype)

    def _require_sizes(self, where: str, inputs: Mapping[str, Tensor]) -> None:
        few = inputs
        if self.axis is not None:
            # A file holds more samples than the model takes at once: as many as it does take show every other size.
            first = next(iter(inputs.values()))
            few = {name: _repeated(array, self.axis.low) for name, array in inputs.items()} if len(first) else inputs
        try:
            self._interface.bind((), few)
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error

    def _refusal(self, where: str, what: str) -> UserError:
        return UserError(f"{where} {what}", hint=f"the model takes {'; '.join(map(str, self._specs.values()))}")


def _tensor(where: str, name: str, array: object) -> Tensor:
    try:
        return torch.as_tensor(array).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        what = str(getattr(array, "dtype", type(array).__name__))
        raise UserError(
            f"{where}: {printable(name)!r} is {what}, not an array of numbers",
            hint="give tensors or NumPy arrays of numbers; text is encoded first",
        ) from error


def _require_equal_lengths(where: str, arrays: Mapping[str, Tensor]) -> None:
    bare = [name for name, array in arrays.items() if array.dim() == 0]
    if bare:
        raise UserError(
            f"{where}: {printable(bare[0])!r} is a single number, without an axis of samples",
            hint="every array has one entry per sample along its first axis; leave out what has none",
        )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{printable(name)} {length:,}" for name, length in list(lengths.items())[:_MOST_NAMES])
        raise UserError(
            f"{where}: arrays of different length: {shown}",
            hint="every array has one entry per sample along its first axis, in the same order",
        )
    if not any(lengths.values()):
        raise UserError(f"{where} holds no samples: its arrays have the length 0", hint="give at least one sample")


def _require_finite(where: str, name: str, array: Tensor) -> None:
    if not (array.is_floating_point() or array.is_complex()):
        return
    wrong = ~torch.isfinite(array)
    if not wrong.any():
        return
    row = int(wrong.reshape(len(array), -1).any(1).nonzero()[0]) if array.dim() else 0
    kind = "a NaN" if bool(torch.isnan(array).any()) else "an infinity"
    raise UserError(
        f"{where}: {printable(name)!r} holds {kind}, first in row {row:,} "
        f"({int(wrong.sum()):,} of {array.numel():,} values are not finite)",
        why="one of them makes every statistic and every gradient NaN",
        hint="leave those rows out; a mask that adds to scores can take torch.finfo(dtype).min in place of -inf",
    )


def _kind(dtype: torch.dtype) -> str:
    """Booleans are integers, where true is 1."""
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"


def _fits(array: Tensor, dtype: torch.dtype) -> bool:
    if not array.numel():
        return True
    if not (dtype.is_floating_point or dtype.is_complex):
        low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        numbers: Any = array.numpy()
        return low <= int(numbers.min()) and int(numbers.max()) <= high
    cast = array.to(dtype)
    if dtype in _ROUNDED_TO:
        return bool(torch.isfinite(cast).all())
    return bool((cast.to(array.dtype) == array).all())


def _repeated(array: Tensor, samples: int) -> Tensor:
    """Exactly ``samples`` samples: the first ones, over again where there are fewer."""
    return array[torch.arange(max(samples, 1)) % len(array)]


def _listed(names: Mapping[str, Tensor] | Sequence[str]) -> str:
    shown = [printable(name) for name in names]
    return ", ".join(shown[:_MOST_NAMES]) + (
        f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    )
