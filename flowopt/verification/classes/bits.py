"""The gate of BITWISE passes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from flowopt.report.verdict import Finding


def compare_bits(output: str, case: str, before: Tensor, after: Tensor) -> Iterator[Finding]:
    """A finding unless both tensors have the same bits, signs of zero and positions of NaN included.

    Args:
        output: name for the report.
        case: label for the report.
        before: the value before the pass (not the captured original: an exact pass may have run since).
        after: the value after it.
    """
    if before.shape != after.shape or before.dtype != after.dtype:
        return  # the structure gate says so
    left, right = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (before, after))
    same = left == right
    if left.is_floating_point():
        same = (same & (torch.signbit(left) == torch.signbit(right))) | (torch.isnan(left) & torch.isnan(right))
    count = int((~same).sum())
    if count:
        yield Finding("bits", output, case, f"{count} of {same.numel()} values do not have the same bits")
