"""What a budget limits, measured on one output of one case."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.report.verdict import Figures
from flowopt.rewrite.budget import Budget
from flowopt.verification.output_evidence import OutputEvidence, as_real
from flowopt.verification.rows import row_max


@dataclass(frozen=True, slots=True)
class Measure:
    """One limit of a budget beside what was measured.

    Attributes:
        limit: name of the budget's attribute.
        what: was measured.
        value: of the measurement.
        allowed: by the budget.
        is_least: ``allowed`` is the smallest value that passes, else the largest.
        form: both numbers as text.
    """

    limit: str
    what: str
    value: float
    allowed: float
    is_least: bool
    form: str

    @property
    def is_over(self) -> bool:
        """Beyond the budget; NaN is."""
        return not (self.value >= self.allowed if self.is_least else self.value <= self.allowed)

    def is_worse(self, other: "Measure") -> bool:
        """Nearer to the limit than the other, or further beyond it."""
        return self.value < other.value if self.is_least else self.value > other.value

    def __str__(self) -> str:
        bound = "least" if self.is_least else "most"
        return f"{self.what} {self._text(self.value)}, {self._text(self.allowed)} is the {bound}"

    def _text(self, value: float) -> str:
        return self.form.format(value)


def measures(
    budget: Budget, figures: Figures, known: OutputEvidence, found: Tensor, naive: Tensor | None
) -> Iterator[Measure]:
    """Every limit that the budget sets for this output.

    Args:
        budget: of the pass.
        figures: of the output in this case.
        known: the original's.
        found: the candidate's value, of the original's shape and dtype.
        naive: the naive cast's value, where the budget names a cast and its shape is the same.
    """
    if known.own_error is None:
        yield from _decisions(budget, known, found, naive)
        return
    assert figures.candidate is not None
    if budget.min_snr_db is not None:
        what = "signal-to-noise ratio"
        yield Measure("min_snr_db", what, figures.candidate.snr_db, budget.min_snr_db, True, "{:.4g} dB")
    if budget.min_agreement is not None and _has_rows(found):
        share = _agreement(known, found)
        yield Measure("min_agreement", "top-1 agreement", share, budget.min_agreement, True, "{:.2%}")
    if budget.max_relative is not None:
        what = "largest error, of its row's largest element,"
        yield Measure("max_relative", what, _relative(known, found), budget.max_relative, False, "{:.2g}")
    if naive is not None and budget.cast is not None:
        own = _largest_error(known, naive)
        times = figures.max_error / own if own > 0 else math.inf if figures.max_error > 0 else 0.0
        what = f"error {figures.max_error:.1e}, that of the naive cast to {_name(budget.cast)} is {own:.1e}:"
        yield Measure("cast_factor", what, times, budget.cast_factor, False, "{:.2g} times")


def _decisions(budget: Budget, known: OutputEvidence, found: Tensor, naive: Tensor | None) -> Iterator[Measure]:
    """Integers and booleans: they stay as they are, unless the budget says how many may change."""
    settled = torch.ones_like(found).bool() if known.undecided is None else ~known.undecided
    wrong, total = int(((found != known.original) & settled).sum()), found.numel()
    if budget.min_agreement is not None:
        share = 1.0 - wrong / total if total else 1.0
        yield Measure("min_agreement", "agreement of decisions", share, budget.min_agreement, True, "{:.2%}")
    elif naive is not None:
        allowed = budget.cast_factor * int(((naive != known.original) & settled).sum())
        yield Measure("cast_factor", f"decisions that differ, of {total}:", wrong, allowed, False, "{:.0f}")
    else:
        what = f"decisions that differ, of {total} (min_agreement is not set):"
        yield Measure("min_agreement", what, wrong, 0, False, "{:.0f}")


def _scope(known: OutputEvidence) -> Tensor:
    """Elements that have an oracle and do not hang on a decision that rounding may turn."""
    scope = torch.isfinite(as_real(known.oracle)) & torch.isfinite(as_real(known.original))
    return scope if known.undecided is None else scope & ~known.undecided


def _has_rows(found: Tensor) -> bool:
    return found.dim() > 0 and found.shape[-1] > 1 and not found.is_complex()


def _agreement(known: OutputEvidence, found: Tensor) -> float:
    """Share of rows whose largest element stays where it was; rows that are not all in scope do not count."""
    counted = _scope(known).all(-1)
    same = (found.argmax(-1) == known.oracle.argmax(-1))[counted]
    return float(same.double().mean()) if same.numel() else 1.0


def _relative(known: OutputEvidence, found: Tensor) -> float:
    scope, oracle = _scope(known), as_real(known.oracle)
    error = row_max(torch.where(scope, (as_real(found).to(torch.float64) - oracle).abs(), 0.0))
    scale = row_max(torch.where(scope, oracle.abs(), 0.0))
    share = torch.where(error > 0, error / scale, 0.0)
    return float(share.max()) if share.numel() else 0.0


def _largest_error(known: OutputEvidence, naive: Tensor) -> float:
    """Infinite where the naive cast overflows."""
    error = (as_real(naive).to(torch.float64) - as_real(known.oracle)).abs()
    error = torch.where(_scope(known), error.nan_to_num(nan=math.inf), 0.0)
    return float(error.max()) if error.numel() else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
