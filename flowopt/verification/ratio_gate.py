"""The gate of the ratio: a candidate's error is in proportion to the original's own, row by row and as a whole."""

import math

import torch
from torch import Tensor

from flowopt.report.verdict import Figures, Finding
from flowopt.verification.limits import Limits
from flowopt.verification.metrics import measured
from flowopt.verification.output_evidence import OutputEvidence
from flowopt.verification.rows import rms, row_max, spread
from flowopt.verification.twin_gate import twin_allowed

_FEW_ELEMENTS = 64
_REACH = 4.0


def ratio_gate(
    output: str,
    case: str,
    evidence: OutputEvidence,
    candidate: Tensor,
    twin_error: float | None,
    limits: Limits,
    *,
    detailed: bool,
) -> tuple[Figures, list[Finding]]:
    """Figures of a candidate, and a finding where its error is not in proportion to the original's own."""
    own, undecided = evidence.own_error, evidence.undecided
    assert own is not None
    scope = torch.isfinite(evidence.oracle) & torch.isfinite(evidence.original) & torch.isfinite(candidate)
    scope = scope if undecided is None else scope & ~undecided
    error = torch.where(scope, (candidate.to(torch.float64) - evidence.oracle).abs(), 0.0)
    size = torch.where(scope, evidence.oracle.abs(), 0.0)
    roundoff = torch.finfo(candidate.dtype).eps / 2
    tiny = torch.finfo(candidate.dtype).smallest_normal
    scale = row_max(size)
    allowed = limits.largest * row_max(own) + 4 * roundoff * scale + tiny
    allowed_rms = _rms_limit(limits, own) * rms(own) + 4 * roundoff * rms(size) + tiny
    excess = row_max(error) / allowed
    worst = _largest(excess)
    ratio = max(worst, rms(error) / allowed_rms)
    unsettled = 0 if undecided is None else int(undecided.sum())
    visible = allowed if twin_error is None else twin_allowed(own, scale, candidate.dtype, limits)
    figures = Figures(
        output=output,
        case=case,
        max_error=_largest(error),
        own_error=_largest(own),
        ratio=ratio,
        twin_error=twin_error,
        power=_power(visible, scale, scope),
        ignored=int((~scope).sum()) - unsettled,
        undecided=unsettled,
        elements=candidate.numel(),
        candidate=measured(candidate, evidence.oracle, scope) if detailed else None,
        original=measured(evidence.original, evidence.oracle, scope) if detailed else None,
    )
    beyond = _beyond_reach(evidence, candidate, allowed)
    if beyond:
        message = f"{beyond} undecided elements are farther off than any way of deciding them takes the original"
        return figures, [Finding("ratio", output, case, message)]
    if ratio <= 1.0:
        return figures, []
    if worst == ratio:
        at = int(excess.argmax())
        error_there, scale_there, own_there = (float(t[at]) for t in (row_max(error), scale, row_max(own)))
        found = f"error {error_there:.2e} against float64 in a row of scale {scale_there:.1e}"
    else:
        found, own_there = f"root mean square error {rms(error):.2e} against float64", rms(own)
    message = f"{found} is {_times(ratio)} times what is allowed; the original's own there is {own_there:.2e}"
    return figures, [Finding("ratio", output, case, message)]


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 1e5 else f"{ratio:.1e}"


def _beyond_reach(evidence: OutputEvidence, candidate: Tensor, allowed: Tensor) -> int:
    """Undecided elements that no decision explains: a third value, or a NaN.

    Several decisions may fall each its own way, so a candidate need not equal one of the two oracles.
    """
    reach = evidence.reach
    if reach is None:
        return 0
    judged = (reach > 0) & torch.isfinite(reach) & torch.isfinite(evidence.oracle) & torch.isfinite(evidence.original)
    error = (candidate.to(torch.float64) - evidence.oracle).abs()
    most = _REACH * row_max(torch.where(torch.isfinite(reach), reach, 0.0)) + allowed
    return int((judged & ~(error <= spread(most, error))).sum())


def _rms_limit(limits: Limits, own: Tensor) -> float:
    """The limit of the root mean square: where a few elements make up all of it, it is no mean, and theirs counts."""
    if own.numel() < _FEW_ELEMENTS:
        return limits.largest
    square = own.square()
    fourth = float(square.square().mean()) if own.numel() else 0.0
    contributing = own.numel() * float(square.mean()) ** 2 / fourth if fourth > 0 else float("inf")
    return limits.rms + (limits.largest - limits.rms) / math.sqrt(max(contributing, 1.0))


def _power(allowed: Tensor, scale: Tensor, scope: Tensor) -> float:
    """Smallest change, relative to its row, that would be seen; over rows that are not all zero.

    Infinite where nothing is in scope.
    """
    if scope.numel() and not bool(scope.any()):
        return math.inf
    visible = scale > 0
    return float((allowed[visible] / scale[visible]).median()) if bool(visible.any()) else 0.0


def _largest(value: Tensor) -> float:
    return float(value.max()) if value.numel() else 0.0
