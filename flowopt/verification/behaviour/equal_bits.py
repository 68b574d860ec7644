"""Which elements of two tensors have the same bits."""

import torch
from torch import Tensor


def equal_bits(left: Tensor, right: Tensor) -> Tensor:
    """Per element, True where both have the same bits; zeros differ by sign, and every NaN counts as the same.

    A complex tensor gives a pair per element, on a new last axis.

    Args:
        left: of any dtype.
        right: of the same dtype and shape.
    """
    left, right = _comparable(left), _comparable(right)
    same = left == right
    if not left.is_floating_point():
        return same
    return (same & (torch.signbit(left) == torch.signbit(right))) | (torch.isnan(left) & torch.isnan(right))


def same_bits(left: Tensor, right: Tensor) -> bool:
    """True when both have one dtype, one shape and the same bits."""
    return left.dtype == right.dtype and left.shape == right.shape and bool(equal_bits(left, right).all())


def _comparable(value: Tensor) -> Tensor:
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj())
    # torch compares no 8-bit floats; float32 holds them exactly.
    return value.to(torch.float32) if value.is_floating_point() and value.element_size() == 1 else value
