"""Distance of two results in units in the last place."""

import torch
from torch import Tensor


def largest_ulp(before: Tensor, after: Tensor) -> float:
    """Largest difference of two tensors, in units in the last place of the largest element of its row (last axis).

    An element's own last place says nothing after cancellation: of a sum of 27 products, the largest ones set the
    size of the rounding, however small the sum. A bound counts roundings of values as large as the row's largest.

    Args:
        before: of any dtype; integers and booleans have no rounding and are 0.0 apart.
        after: same shape and dtype.

    Returns:
        Infinity where a NaN or an infinity stands on one side only.
    """
    if before.is_complex():
        before, after = torch.view_as_real(before.resolve_conj()), torch.view_as_real(after.resolve_conj())
    if not before.is_floating_point() or before.numel() == 0:
        return 0.0
    same = (before == after) | (torch.isnan(before) & torch.isnan(after))
    scope = torch.isfinite(before) & torch.isfinite(after)
    if bool((~same & ~scope).any()):
        return float("inf")
    left, right = (torch.where(scope, t, 0.0).to(torch.float64) for t in (before, after))
    size = torch.maximum(left.abs(), right.abs())
    scale = size.amax(dim=-1, keepdim=True)
    return float(((left - right).abs() / _last_place(scale, before.dtype)).max())


def _last_place(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of ``dtype`` at a magnitude, in float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(size.clamp(min=info.smallest_normal))
    return torch.ldexp(torch.full_like(size, info.eps), exponent - 1)
