"""A row of a mask that hides every position: attention has no defined answer for it.

Kernels give zeros, an average over everything, or NaN, and the specification of ONNX's Attention differs from
softmax's. A lowered file runs other kernels than torch, so what it gives for that sample is noted, not judged; the
other samples of the batch must be right.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from flowopt.report.verdict import Finding
from flowopt.verification.gates import compare
from flowopt.verification.output_evidence import OutputEvidence, distance

MASKED_ROW: Final = "masked-row"


def judged_beside_masked_row(
    output: str, label: str, known: OutputEvidence, candidate: Tensor, findings: tuple[Finding, ...]
) -> Iterator[Finding | str]:
    """Findings of the samples beside the one that differs most, and a note about that one.

    Args:
        output: name for the report.
        label: of the case.
        known: the original on the case.
        candidate: its value.
        findings: of the whole output.
    """
    is_structural = any(f.gate == "structure" for f in findings)
    if not findings or is_structural or known.own_error is None or candidate.dim() == 0 or candidate.shape[0] < 2:
        yield from findings
        return
    off = distance(known.oracle, candidate, known.original).flatten(1).amax(-1)
    off = torch.where(_changes_specials(known.original, candidate), torch.inf, off)
    hidden = int(off.argmax())
    kept = [at for at in range(candidate.shape[0]) if at != hidden]
    rest = replace(
        known,
        oracle=known.oracle[kept],
        original=known.original[kept],
        own_error=known.own_error[kept],
        undecided=None if known.undecided is None else known.undecided[kept],
    )
    left = compare(output, label, rest, candidate[kept], None, detailed=False).findings
    if left:
        yield from left
        return
    by = f"{float(off[hidden]):.1e}"
    yield f"{label}: where a mask hides every position, {output} is another one (by {by}); no answer is defined there"


def _changes_specials(original: Tensor, candidate: Tensor) -> Tensor:
    return (torch.isfinite(original) != torch.isfinite(candidate)).flatten(1).any(-1)
