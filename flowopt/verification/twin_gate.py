"""The gate of the twin: in float64, a rewrite agrees with the oracle but for float64's own rounding."""

from typing import Final

import torch
from torch import Tensor

from flowopt.report.verdict import Finding
from flowopt.verification.limits import Limits
from flowopt.verification.output_evidence import OutputEvidence
from flowopt.verification.rows import row_max

TWIN_TOLERANCE: Final = 1e-9
"""Of the row's scale: float64 rounding of deep models stays below, a wrong rewrite does not."""

_TINY = 1e-300


def twin_gate(
    output: str,
    case: str,
    evidence: OutputEvidence,
    oracle: Tensor,
    twin: Tensor,
    limits: Limits,
    scatter: Tensor | None = None,
) -> tuple[float, list[Finding]]:
    """The error of the rewritten twin, relative to its row and beyond rounding, and what is wrong with it.

    Args:
        output, case: for the report.
        evidence: the original on this case.
        oracle: what the twin must agree with.
        twin: the rewritten twin's value.
        limits: of the ratio gate.
        scatter: float64's own error where it was measured, per element.
    """
    own = evidence.own_error
    assert own is not None
    if twin.shape != oracle.shape:
        return float("inf"), [Finding("twin", output, case, f"float64 twin has shape {list(twin.shape)}")]
    settled = True if evidence.undecided is None else ~evidence.undecided
    finite = torch.isfinite(oracle) & torch.isfinite(twin) & settled
    error = torch.where(finite, (twin.to(torch.float64) - oracle).abs(), 0.0)
    scale = row_max(torch.where(finite, oracle.abs(), 0.0))
    rounding = _rounding(own, evidence.original.dtype, limits)
    if scatter is not None:
        rounding = torch.maximum(rounding, 2 * limits.largest * row_max(scatter))
    # What the model's own precision cannot hold, as the tail of an erfc, is nothing to it.
    nothing = torch.finfo(evidence.original.dtype).smallest_normal
    excess = (row_max(error) - rounding - nothing).clamp(min=0.0)
    relative = float((excess / (scale + _TINY)).max()) if error.numel() else 0.0
    flipped = int(((torch.isfinite(oracle) != torch.isfinite(twin)) & settled).sum())
    if flipped:
        message = f"{flipped} values are finite on one side only, in float64"
        return relative, [Finding("twin", output, case, message)]
    if relative > TWIN_TOLERANCE:
        message = f"in float64 it differs by {relative:.2e} of the row's scale; allowed {TWIN_TOLERANCE:.0e}"
        return relative, [Finding("twin", output, case, message)]
    return relative, []


def twin_allowed(own: Tensor, scale: Tensor, dtype: torch.dtype, limits: Limits) -> Tensor:
    """Per row, the largest error that the twin may have."""
    return TWIN_TOLERANCE * scale + _rounding(own, dtype, limits)


def _rounding(own: Tensor, dtype: torch.dtype, limits: Limits) -> Tensor:
    """Where the original loses all digits to cancellation, float64 loses as many of its own: both sides may."""
    precision = torch.finfo(torch.float64).eps / torch.finfo(dtype).eps
    return 2 * limits.largest * precision * row_max(own)
