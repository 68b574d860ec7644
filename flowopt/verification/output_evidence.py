"""What is known of one output of the original in one case."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.verification.rows import row_max

# A value that moves by less than this many units of roundoff of its row, when a decision falls the other way, is not
# decided by it.
_UNMOVED = 16.0


@dataclass(frozen=True, slots=True)
class OutputEvidence:
    """One output in one case. Complex values stand as pairs of reals in ``own_error``.

    Attributes:
        oracle: the float64 oracle's value (integers and booleans as the original gives them).
        original: the original's own value.
        own_error: |original - oracle|, the largest over the original and its one-ulp ensemble, per element; zero
            where the oracle or the original is not finite. None for integers and booleans.
        undecided: where a decision that rounding may turn either way changes the element, and for integers and
            booleans also where the oracle or the ensemble decides otherwise than the original; None: nowhere.
        reach: how far such a decision moves the oracle, per element; zero where none does, and infinite where the
            other way is not finite. None for integers and booleans, and where nothing is undecided.
    """

    oracle: Tensor
    original: Tensor
    own_error: Tensor | None
    undecided: Tensor | None = None
    reach: Tensor | None = None


def scattered(oracle: Tensor, original: Tensor, moved: Iterable[Tensor]) -> OutputEvidence:
    """Evidence of one value out of the oracle, the original and its ensemble."""
    own = own_error(oracle, original)
    known = OutputEvidence(oracle, original, own, oracle != original if own is None else None)
    for value in moved:
        known = widened(known, value)
    return known


def widened(known: OutputEvidence, moved: Tensor) -> OutputEvidence:
    """Evidence with one more copy of the ensemble."""
    original = known.original
    if moved.shape != original.shape:
        return known  # a size that depends on data
    if known.own_error is None:
        undecided = moved != original
        undecided = undecided if known.undecided is None else known.undecided | undecided
        return OutputEvidence(known.oracle, original, None, undecided)
    own = torch.maximum(known.own_error, distance(known.oracle, moved, original))
    return OutputEvidence(known.oracle, original, own, known.undecided)


def unsettled(known: OutputEvidence, other: Tensor) -> OutputEvidence:
    """Evidence with the oracle whose undecided decisions fell the other way."""
    if other.shape != known.oracle.shape:
        undecided = torch.ones_like(as_real(known.oracle), dtype=torch.bool)
        own = None if known.own_error is None else torch.zeros_like(known.own_error)
        return OutputEvidence(known.oracle, known.original, own, undecided)
    if known.own_error is None:
        moved = other != known.oracle
        undecided = moved if known.undecided is None else known.undecided | moved
        return OutputEvidence(known.oracle, known.original, None, undecided)
    oracle = as_real(known.oracle)
    size = torch.where(torch.isfinite(oracle), oracle.abs(), 0.0)
    scale = size.amax(-1, keepdim=True) if size.dim() and size.numel() else size
    roundoff = torch.finfo(known.original.dtype).eps / 2
    moved = distance(oracle, as_real(other), oracle) > _UNMOVED * roundoff * scale
    moved |= torch.isfinite(oracle) != torch.isfinite(as_real(other))
    same = torch.isfinite(oracle) == torch.isfinite(as_real(other))
    reach = torch.where(moved, torch.where(same, distance(oracle, as_real(other), oracle), torch.inf), 0.0)
    return OutputEvidence(known.oracle, known.original, torch.where(moved, 0.0, known.own_error), moved, reach)


def saturated_rows(known: OutputEvidence, share: float) -> Tensor:
    """For each row, whether the original is off by more than that share of the row's scale."""
    assert known.own_error is not None
    oracle = as_real(known.oracle)
    size = torch.where(torch.isfinite(oracle), oracle.abs(), 0.0)
    if not size.numel():
        return torch.zeros(0, dtype=torch.bool)
    return row_max(known.own_error) > share * row_max(size)


def as_real(value: Tensor) -> Tensor:
    """A complex tensor as pairs (real, imaginary) on a new last axis; others as they are."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def own_error(oracle: Tensor, original: Tensor) -> Tensor | None:
    """|original - oracle| per element; None for integers and booleans."""
    is_discrete = not (original.is_floating_point() or original.is_complex())
    return None if is_discrete else distance(oracle, original, original)


def distance(oracle: Tensor, value: Tensor, original: Tensor) -> Tensor:
    """|value - oracle| in float64; zero where one of them, or the original, is not finite."""
    oracle, value, original = as_real(oracle), as_real(value), as_real(original)
    error = (value.to(torch.float64) - oracle).abs()
    return torch.where(torch.isfinite(error) & torch.isfinite(original), error, 0.0)
