import torch
from torch import Tensor

from flowopt.report.verdict import Finding
from flowopt.verification.gates import compare
from flowopt.verification.masked_rows import judged_beside_masked_row
from flowopt.verification.output_evidence import OutputEvidence, scattered


def evidence() -> OutputEvidence:
    value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    return scattered(value.double(), value, [value * (1 + 1e-7)])


def judged(candidate: Tensor, known: OutputEvidence) -> list[Finding | str]:
    findings = compare("y", "c", known, candidate, None).findings
    return list(judged_beside_masked_row("y", "c", known, candidate, findings))


def test_another_answer_for_one_sample_is_a_note() -> None:
    known = evidence()
    candidate = known.original.clone()
    candidate[1] = 0.0
    (note,) = judged(candidate, known)
    assert isinstance(note, str) and "no answer is defined there" in note


def test_nan_for_one_sample_is_a_note() -> None:
    known = evidence()
    candidate = known.original.clone()
    candidate[2, 0] = float("nan")
    (note,) = judged(candidate, known)
    assert isinstance(note, str)


def test_a_second_sample_that_differs_is_a_finding() -> None:
    known = evidence()
    candidate = known.original.clone()
    candidate[1] = 0.0
    candidate[2, 0, 0] += 0.01
    assert [f.gate for f in judged(candidate, known) if isinstance(f, Finding)] == ["ratio"]


def test_an_equal_candidate_says_nothing() -> None:
    known = evidence()
    assert judged(known.original, known) == []


def test_another_shape_stays_a_finding() -> None:
    known = evidence()
    (finding,) = judged(known.original[:2], known)
    assert isinstance(finding, Finding) and finding.gate == "structure"
