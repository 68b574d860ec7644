"""Patterns of masks: which positions are visible."""

from typing import Final, Literal

import torch
from torch import Generator, Tensor

MaskPattern = Literal[
    "ones", "right-padded", "left-padded", "keep-one", "every-other-keeps-one", "holes", "one-row-hidden"
]
"""``one-row-hidden`` alone has a row that hides everything, for which attention has no defined answer: kernels give
zeros, an average, or NaN."""

ORDINARY_MASKS: Final[tuple[MaskPattern, ...]] = ("holes", "ones", "left-padded", "keep-one", "right-padded")


def visible_positions(pattern: MaskPattern, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Ones where the last axis is visible, else zeros; int64."""
    if not shape or pattern == "ones":
        return torch.ones(shape, dtype=torch.int64)
    length = shape[-1]
    rows = int(torch.Size(shape[:-1]).numel())
    counts = torch.randint(1, length + 1, (rows, 1), generator=generator)
    positions = torch.arange(length).expand(rows, length)
    is_even_row = torch.arange(rows).unsqueeze(-1) % 2 == 0
    kept = positions == counts - 1
    if pattern == "keep-one":
        mask = kept | ~is_even_row
    elif pattern == "every-other-keeps-one":
        mask = kept | is_even_row
    elif pattern == "left-padded":
        mask = positions >= length - counts
    elif pattern == "holes":
        mask = kept | (torch.rand(rows, length, generator=generator) < 0.5)
    else:
        mask = positions < counts
    if pattern == "one-row-hidden":
        mask = mask & (torch.arange(rows).unsqueeze(-1) > 0)
    return mask.to(torch.int64).reshape(shape)
