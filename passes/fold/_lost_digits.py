"""Parameters that lose digits because they would fall below the normal numbers of their dtype."""

import torch
from torch import Tensor


def loses_digits(new: Tensor, old: Tensor, limits: torch.finfo, *, by_column: bool = True, groups: int = 1) -> bool:
    """Whether a row or column would have no normal number left. Beside larger weights, lost digits do not matter.

    Args:
        new: the parameter before it is rounded, in float64; what is zero in it is exactly so.
        old: the one that it replaces, of the same shape.
        limits: of the dtype it is stored in.
        by_column: also judge what each input is multiplied by; inputs may be larger the smaller their weights are.
        groups: of a convolution: its inputs are of this many blocks of rows.
    """
    pairs = zip(_largest(old, by_column, groups), _largest(new, by_column, groups), strict=True)
    return any(bool(((before >= limits.tiny) & (after < limits.tiny) & (after > 0)).any()) for before, after in pairs)


def _largest(parameter: Tensor, by_column: bool, groups: int) -> list[Tensor]:
    """The largest magnitude of each row and of each column, or of a vector."""
    magnitude = parameter.abs()
    if parameter.dim() < 2:
        return [magnitude.amax()]
    rows = magnitude.flatten(1).amax(1)
    if not by_column:
        return [rows]
    blocks = magnitude.reshape(groups, -1, *magnitude.shape[1:])
    return [rows, blocks.transpose(1, 2).flatten(2).amax(2)]
