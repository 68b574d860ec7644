"""The gates: structure, specials, twin, ratio and discrete, for one output on one case."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowopt.report.verdict import Figures, Finding
from flowopt.verification.evidence import OutputEvidence, as_real
from flowopt.verification.limits import MODEL_LIMITS, Limits
from flowopt.verification.metrics import measured

TWIN_TOLERANCE = 1e-9  # of the row's scale: float64 rounding of deep models stays below, a wrong rewrite does not
_TINY = 1e-300
_SMALLEST_ROW = 32
_FEW_ELEMENTS = 64
_REACH = 4.0
_SATURATED = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures of one output on one case, and the gates that failed."""

    figures: Figures | None
    findings: tuple[Finding, ...]


def compare(
    output: str,
    case: str,
    evidence: OutputEvidence,
    candidate: Tensor,
    twin: Tensor | None,
    *,
    twin_oracle: Tensor | None = None,
    limits: Limits = MODEL_LIMITS,
    detailed: bool = True,
    skip_weak_rows: bool = False,
) -> Comparison:
    """Put a candidate's output through every gate.

    Args:
        output: name for the report.
        case: label for the report.
        evidence: the original on this case.
        candidate: the rewritten program's or the lowered file's value.
        twin: the rewrite of the float64 twin; None where there is none (lowered files).
        twin_oracle: what the twin must agree with, when that is not the evidence's oracle.
        limits: of the ratio gate.
        detailed: figures beyond the ratio too.
        skip_weak_rows: leave out rows in which the original itself is so far off that a check says too little: at a
            site and on stressed weights nobody asked for those numbers.
    """
    original = evidence.original
    if candidate.shape != original.shape or candidate.dtype != original.dtype:
        message = f"{candidate.dtype} {list(candidate.shape)}, not {original.dtype} {list(original.shape)}"
        return Comparison(None, (Finding("structure", output, case, message),))
    wanted = evidence.oracle if twin_oracle is None else twin_oracle
    if evidence.own_error is None:
        return _discrete(output, case, evidence, candidate, twin, wanted)
    evidence = replace(evidence, oracle=as_real(evidence.oracle), original=as_real(original))
    candidate, twin = as_real(candidate), None if twin is None else as_real(twin)
    findings = list(_specials(output, case, evidence, candidate))
    evidence = _without_weak_rows(evidence) if skip_weak_rows else evidence
    twin_error = None
    if twin is not None:
        twin_error, twin_findings = _twin(output, case, evidence, as_real(wanted), twin, limits)
        findings += twin_findings
    figures, ratio_findings = _ratio(output, case, evidence, candidate, twin_error, limits, detailed=detailed)
    return Comparison(figures, (*findings, *ratio_findings))


def _without_weak_rows(evidence: OutputEvidence) -> OutputEvidence:
    """Rows in which the original itself is off by half of the row's scale become undecided.

    They amplify rounding without bound, and not in proportion: a softmax between huge scores flips now and then, and
    a constant row behind a tiny epsilon is noise in float32 and nearly zero in float64.
    """
    own = evidence.own_error
    assert own is not None
    if not own.numel():
        return evidence
    size = torch.where(torch.isfinite(evidence.oracle), evidence.oracle.abs(), 0.0)
    weak = row_max(own) > _SATURATED * row_max(size)
    mask = weak.unsqueeze(-1).expand(_rows(own).shape).reshape(own.shape)
    undecided = mask if evidence.undecided is None else mask | evidence.undecided
    return replace(evidence, own_error=torch.where(mask, 0.0, own), undecided=undecided)


def with_pooled_rows(evidence: OutputEvidence) -> OutputEvidence:
    """Evidence in which every row has the largest own error of any, in proportion to its scale.

    For numbers that are of one kind in all rows. Between huge scores a softmax flips in some rows and not in others,
    and which ones is up to rounding: a row that no copy flipped may still be one of them.
    """
    own = evidence.own_error
    if own is None or not own.numel():
        return evidence
    oracle = as_real(evidence.oracle)
    scale = row_max(torch.where(torch.isfinite(oracle), oracle.abs(), 0.0))
    relative = torch.where(scale > 0, row_max(own) / scale, 0.0)
    pooled = (relative.max() * scale).unsqueeze(-1).expand(_rows(own).shape).reshape(own.shape)
    return replace(evidence, own_error=torch.maximum(own, pooled))


def _discrete(
    output: str, case: str, evidence: OutputEvidence, candidate: Tensor, twin: Tensor | None, wanted: Tensor
) -> Comparison:
    """Integers and booleans are equal, except where the original itself decides one way or the other."""
    undecided = evidence.undecided
    total = candidate.numel()
    count = 0 if undecided is None else int(undecided.sum())
    share = count / total if total else 0.0
    figures = Figures(output, case, 0.0, 0.0, 0.0, None, power=share, undecided=count, elements=total)
    findings = []
    pairs = [("", candidate, evidence.original)]
    pairs += [("in float64, ", twin, wanted)] if twin is not None and twin.shape == wanted.shape else []
    for where, found, expected in pairs:
        wrong = found != expected
        wrong = wrong if undecided is None else wrong & ~undecided
        if bool(wrong.any()):
            message = f"{where}{int(wrong.sum())} of {total} decisions differ"
            findings.append(Finding("discrete", output, case, message))
    if twin is not None and twin.shape != wanted.shape:
        findings.append(Finding("twin", output, case, f"float64 twin has shape {list(twin.shape)}"))
    return Comparison(figures, tuple(findings))


def _specials(output: str, case: str, evidence: OutputEvidence, candidate: Tensor) -> Iterator[Finding]:
    oracle, original = torch.isfinite(evidence.oracle), torch.isfinite(evidence.original)
    finite = torch.isfinite(candidate)
    if evidence.undecided is not None:
        oracle, original, finite = (t[~evidence.undecided] for t in (oracle, original, finite))
    swallowed = ~oracle & ~original & finite
    if bool(swallowed.any()):
        yield Finding("specials", output, case, f"swallowed: {int(swallowed.sum())} NaN or Inf became finite")
    introduced = oracle & original & ~finite
    if bool(introduced.any()):
        yield Finding("specials", output, case, f"introduced: {int(introduced.sum())} finite values became NaN or Inf")


def _twin(
    output: str, case: str, evidence: OutputEvidence, oracle: Tensor, twin: Tensor, limits: Limits
) -> tuple[float, list[Finding]]:
    own = evidence.own_error
    assert own is not None
    if twin.shape != oracle.shape:
        return float("inf"), [Finding("twin", output, case, f"float64 twin has shape {list(twin.shape)}")]
    settled = True if evidence.undecided is None else ~evidence.undecided
    finite = torch.isfinite(oracle) & torch.isfinite(twin) & settled
    error = torch.where(finite, (twin.to(torch.float64) - oracle).abs(), 0.0)
    scale = row_max(torch.where(finite, oracle.abs(), 0.0))
    rounding = _twin_rounding(own, evidence.original.dtype, limits)
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


def _ratio(
    output: str,
    case: str,
    evidence: OutputEvidence,
    candidate: Tensor,
    twin_error: float | None,
    limits: Limits,
    *,
    detailed: bool,
) -> tuple[Figures, list[Finding]]:
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
    allowed_rms = _rms_limit(limits, own) * _rms(own) + 4 * roundoff * _rms(size) + tiny
    worst = float((row_max(error) / allowed).max()) if error.numel() else 0.0
    ratio = max(worst, _rms(error) / allowed_rms)
    unsettled = 0 if undecided is None else int(undecided.sum())
    visible = allowed if twin_error is None else _twin_allowed(own, scale, candidate.dtype, limits)
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
    message = (
        f"error {figures.max_error:.2e} against float64 is {ratio:.1f} times what is allowed; "
        f"the original's own is {figures.own_error:.2e}"
    )
    return figures, [Finding("ratio", output, case, message)]


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
    within = error <= most.unsqueeze(-1).expand(_rows(error).shape).reshape(error.shape)
    return int((judged & ~within).sum())


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


def _twin_allowed(own: Tensor, scale: Tensor, dtype: torch.dtype, limits: Limits) -> Tensor:
    return TWIN_TOLERANCE * scale + _twin_rounding(own, dtype, limits)


def _twin_rounding(own: Tensor, dtype: torch.dtype, limits: Limits) -> Tensor:
    """Where the original loses all digits to cancellation, float64 loses as many of its own: both sides may."""
    precision = torch.finfo(torch.float64).eps / torch.finfo(dtype).eps
    return 2 * limits.largest * precision * row_max(own)


def _rows(value: Tensor) -> Tensor:
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
    return _rows(value).amax(dim=-1)


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt()) if value.numel() else 0.0


def _largest(value: Tensor) -> float:
    return float(value.max()) if value.numel() else 0.0
