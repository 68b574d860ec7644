"""The gates: structure, specials, twin, ratio and discrete, for one output on one case."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from flowopt.report.verdict import Figures, Finding
from flowopt.verification.limits import MODEL_LIMITS, Limits
from flowopt.verification.output_evidence import OutputEvidence, as_real, saturated_rows
from flowopt.verification.ratio_gate import ratio_gate
from flowopt.verification.rows import row_max, spread
from flowopt.verification.twin_gate import twin_gate

SWALLOWED: Final = "swallowed"
"""How the finding begins that special values of the original are finite in the candidate."""

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
    scatter: Tensor | None = None,
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
        scatter: float64's own error where it was measured, as ``float64_scatter`` gives it.
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
        twin_error, twin_findings = twin_gate(output, case, evidence, as_real(wanted), twin, limits, scatter)
        findings += twin_findings
    figures, ratio_findings = ratio_gate(output, case, evidence, candidate, twin_error, limits, detailed=detailed)
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
    mask = spread(saturated_rows(evidence, _SATURATED), own)
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
    pooled = spread(relative.max() * scale, own)
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
        yield Finding("specials", output, case, f"{SWALLOWED}: {int(swallowed.sum())} NaN or Inf became finite")
    introduced = oracle & original & ~finite
    if bool(introduced.any()):
        yield Finding("specials", output, case, f"introduced: {int(introduced.sum())} finite values became NaN or Inf")
