"""A sample's answer does not depend on the samples beside it.

No rule of torch or ONNX Runtime promises the same bits: kernels choose by size. So other bits are a note, and only
what the rounding gate refuses is a finding.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from flowopt.report.verdict import Finding
from flowopt.verification.behaviour.answers import GATE, Answer, Runner, around, ask, bit_difference, bit_note, fresh
from flowopt.verification.evidence import CaseEvidence
from flowopt.verification.gates import compare
from flowopt.verification.output_evidence import as_real

_SAME: Final = 1e-9  # of the output's scale, as for the float64 twin
_TINY: Final = 1e-300


def check_batch_invariance(
    cases: Sequence[CaseEvidence], run: Runner, answers: Mapping[str, Answer]
) -> Iterator[Finding | str]:
    """Compare every case that holds samples of another one with that one, output by output.

    An output counts where the oracle gives the same rows in both: there its first axis is the batch, and the model
    itself keeps samples apart.

    Args:
        cases: some with ``samples``.
        run: the candidate.
        answers: by case label, the candidate's answers that are known already.
    """
    by_name = {known.case.name: known for known in cases}
    known_answers = dict(answers)
    for part in cases:
        whole = by_name.get(part.case.samples[0]) if part.case.samples is not None else None
        if part.case.samples is None or whole is None:
            continue
        for known in (whole, part):
            if known.case.label not in known_answers:
                known_answers[known.case.label] = ask(run, fresh(known.case.inputs))
        yield from _compared(whole, part, known_answers[whole.case.label], known_answers[part.case.label])


def _compared(whole: CaseEvidence, part: CaseEvidence, large: Answer, small: Answer) -> Iterator[Finding | str]:
    assert part.case.samples is not None
    indexes = torch.tensor(part.case.samples[1])
    label = part.case.label
    measure = around(part, small).outputs
    within: dict[str, str] = {}
    for name, evidence in part.outputs.items():
        if name not in large.values or name not in small.values:
            continue
        if not _keeps_apart(_rows(whole.outputs[name].oracle, indexes), evidence.oracle):
            continue
        rows = _rows(large.values[name], indexes)
        message = bit_difference(small.values[name], rows)
        if not message:
            continue
        if rows is None or name not in measure or not compare(name, label, measure[name], rows, None).findings:
            within[name] = message
            continue
        what = f"beside other samples, in {whole.case.label}, the same samples give something else: {message}"
        yield Finding(GATE, name, label, what)
    if within:
        yield f"{label}: not batch-invariant bit for bit: {bit_note(within)}; within the rounding gate"


def _rows(value: Tensor, indexes: Tensor) -> Tensor | None:
    """Some rows of the first axis; None where there are no such rows."""
    fits = value.dim() > 0 and (indexes.numel() == 0 or int(indexes.max()) < value.shape[0])
    return value.index_select(0, indexes) if fits else None


def _keeps_apart(rows: Tensor | None, oracle: Tensor) -> bool:
    if rows is None or rows.shape != oracle.shape:
        return False
    left, right = (as_real(value).to(torch.float64) for value in (rows, oracle))
    finite = torch.isfinite(left) & torch.isfinite(right)
    if not bool((finite | (left == right) | (torch.isnan(left) & torch.isnan(right))).all()):
        return False
    distance = torch.where(finite, (left - right).abs(), 0.0)
    scale = torch.where(finite, right.abs(), 0.0)
    return not distance.numel() or float(distance.max()) <= _SAME * float(scale.max()) + _TINY
