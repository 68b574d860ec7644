"""Casts that keep every value."""

from typing import Final

import torch
from torch import Tensor

from flowopt.verification.behaviour.equal_bits import equal_bits

# NumPy has none of these dtypes; each of their values exists in the wider one.
STORED_AS: Final = {
    torch.bfloat16: torch.float32,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e4m3fnuz: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.float8_e5m2fnuz: torch.float32,
    torch.complex32: torch.complex64,
}


def lossless(value: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The tensor in another dtype, when each of its values exists there; None when one does not.

    Floats stay floats, complex numbers complex; booleans and integers are one kind, where true is 1. A NaN stays a
    NaN, whatever its payload.
    """
    if value.dtype == dtype:
        return value
    if (value.is_floating_point(), value.is_complex()) != (dtype.is_floating_point, dtype.is_complex):
        return None
    cast = value.to(dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return cast if bool(equal_bits(cast.to(value.dtype), value).all()) else None
    # A detour would not show what wraps around: -1 is a uint64 and comes back.
    return cast if _has_room(value, dtype) else None


def _has_room(value: Tensor, dtype: torch.dtype) -> bool:
    if value.numel() == 0:
        return True
    array = value.detach().cpu().numpy()
    low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return low <= int(array.min()) and int(array.max()) <= high
