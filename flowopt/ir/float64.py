"""Raise every floating dtype of a computation to float64: in tensors and in operator arguments.

``module.double()`` is not an oracle: a model's own ``.to(float32)`` stays and leaves errors of 5e-7.
Raising happens per operator call, on the functional graph, where nothing can hide a dtype.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

RAISED_DTYPE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def raised_tensor(tensor: Tensor) -> Tensor:
    """The same values in float64 (complex128); integers, booleans and float64 come back unchanged."""
    wanted = RAISED_DTYPE.get(tensor.dtype)
    return tensor if wanted is None else tensor.to(wanted)


def raised_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Operator arguments with every floating dtype raised."""
    return tuple(_raised_dtype(a) for a in args), {name: _raised_dtype(value) for name, value in kwargs.items()}


@contextlib.contextmanager
def float64_by_default(active: bool) -> Iterator[None]:
    """Within it, operators that follow torch's default dtype give float64, when ``active``.

    Factories without a dtype do (``arange``, ``full``), and integers that meet numbers or a division:
    ``mask.sum(1) / 7`` is float32 though no argument says so.
    """
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if active else previous)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def _raised_dtype(value: Any) -> Any:
    return RAISED_DTYPE.get(value, value) if isinstance(value, torch.dtype) else value
