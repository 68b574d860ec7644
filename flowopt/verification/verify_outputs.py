"""Judge anything that maps named inputs to named outputs: a lowered file, another program."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.verification.behaviour.answers import Runner
from flowopt.verification.behaviour.behaviour import check_behaviour
from flowopt.verification.evidence import CaseEvidence, Evidence
from flowopt.verification.gates import compare
from flowopt.verification.levels import Level
from flowopt.verification.masked_rows import MASKED_ROW, judged_beside_masked_row
from flowopt.verification.output_evidence import OutputEvidence
from flowopt.verification.precision import strict_float32
from flowopt.verification.weakness import weak_outputs

__all__ = ["Runner", "verify_outputs"]


def verify_outputs(
    evidence: Evidence,
    run: Runner,
    *,
    level: Level = "quick",
    more: Iterable[Figures | Finding | str] = (),
    with_threads: Callable[[int], Runner] | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Verdict:
    """Compare a candidate with the original on every case: structure, specials, discrete outputs, rounding.

    There is no float64 twin of a lowered file, so the evidence is the rounding gate's; ``Verdict.power`` says how
    small a change it could have seen, and where that is too much the verdict is inconclusive. Cases that replace a
    node inside the graph do not apply.

    Args:
        evidence: of the original.
        run: the candidate; it gets inputs by name and must not change them.
        level: ``full`` also checks how the candidate behaves: repeated calls, layouts, threads, aliasing.
        more: figures, findings and notes of further checks of this candidate, drawn after the cases.
        with_threads: the candidate with another number of threads; None: torch's number of threads is its own.
        on_case: called before each case, for progress.
    """
    findings: list[Finding] = []
    figures: list[Figures] = []
    notes = list(evidence.skipped)
    cases = [e for e in evidence.cases if not e.case.overrides]

    def take(judged: Iterable[Figures | Finding | str]) -> None:
        for one in judged:
            if isinstance(one, Finding):
                findings.append(one)
            elif isinstance(one, Figures):
                figures.append(one)
            else:
                notes.append(one)

    with strict_float32():
        for known in cases:
            if on_case is not None:
                on_case(known.case.label)
            take(_judged(known, run))
        take(more)
        if level == "full" and cases and not any(f.gate == "structure" for f in findings):
            if on_case is not None:
                on_case("behaviour")
            take(check_behaviour(evidence, run, with_threads=with_threads))
    dtypes = {name: one.original.dtype for e in cases for name, one in e.outputs.items()}
    weak = [] if findings else weak_outputs(figures, dtypes, evidence.narrowest)
    outcome = Outcome.DIFFERENT if findings else Outcome.EQUIVALENT if cases and not weak else Outcome.INCONCLUSIVE
    labels = tuple(e.case.label for e in cases)
    return Verdict(outcome, tuple(findings), tuple(figures), (*weak, *notes), evidence.seed, labels, level)


def _judged(known: CaseEvidence, run: Runner) -> Iterator[Figures | Finding | str]:
    label = known.case.label
    given = {name: t.clone() for name, t in known.case.inputs.items()}
    try:
        got = run(given)
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises is a finding about the file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        yield Finding("structure", "the candidate", label, f"it does not run: {first}")
        return
    changed = [n for n, t in given.items() if not _same(t, known.case.inputs[n])]
    if changed:
        yield Finding("structure", changed[0], label, "the candidate wrote into its input")
    yield from _names(known.outputs, got, label)
    for name, one in known.outputs.items():
        if name in got:
            yield from _compared(known, name, one, got[name])


def _compared(known: CaseEvidence, name: str, one: OutputEvidence, found: Tensor) -> Iterator[Figures | Finding | str]:
    label = known.case.label
    result = compare(name, label, one, found, None)
    if known.case.name == MASKED_ROW and result.findings:
        # Figures of a sample that has no defined answer would only alarm.
        yield from judged_beside_masked_row(name, label, one, found, result.findings)
        return
    yield from result.findings
    if result.figures is not None:
        yield replace(result.figures, regime=known.case.regime)


def _names(wanted: Iterable[str], got: Iterable[str], label: str) -> list[Finding]:
    expected, found = set(wanted), set(got)
    return [Finding("structure", n, label, "the candidate lacks this output") for n in sorted(expected - found)] + [
        Finding("structure", n, label, "the candidate has this output, the original has not")
        for n in sorted(found - expected)
    ]


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(((left == right) | ((left != left) & (right != right))).all())
