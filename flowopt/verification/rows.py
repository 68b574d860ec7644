"""Rows: the parts of an output that have a scale of their own."""

from torch import Tensor

_SMALLEST_ROW = 32


def rows_of(value: Tensor) -> Tensor:
    """Rows are the last axis; in maps of four axes and more, joined by further ones until they hold 32 elements.

    The own error of a row of one element is one draw: over 1 x 1 feature maps right folds would fail now and then.
    Elsewhere rows are of different scales, and short ones get a larger ensemble instead (``copies_for``). The first
    axis, the batch, is never joined.
    """
    if value.dim() == 0 or value.numel() == 0:
        return value.reshape(-1, 1)
    width, axis = value.shape[-1], value.dim() - 1
    while value.dim() > 3 and width < _SMALLEST_ROW and axis > 1:
        axis -= 1
        width *= value.shape[axis]
    return value.reshape(-1, width)


def row_max(value: Tensor) -> Tensor:
    """Largest element of each row, as the gates count rows."""
    return rows_of(value).amax(dim=-1)


def rms(value: Tensor) -> float:
    """Root mean square; zero of nothing."""
    return float(value.square().mean().sqrt()) if value.numel() else 0.0


def spread(row_values: Tensor, like: Tensor) -> Tensor:
    """One value per row at every element of a tensor whose rows they belong to."""
    return row_values.unsqueeze(-1).expand(rows_of(like).shape).reshape(like.shape)
