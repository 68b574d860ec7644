"""Judge anything that maps named inputs to named outputs: a lowered file, another program."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.verification.evidence import Evidence
from flowopt.verification.gates import compare

Runner = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def verify_outputs(evidence: Evidence, run: Runner, *, on_case: Callable[[str], None] | None = None) -> Verdict:
    """Compare a candidate with the original on every case: structure, specials, discrete outputs, rounding.

    There is no float64 twin of a lowered file, so the evidence is the rounding gate's; ``Verdict.power`` says how
    small a change it could have seen. Cases that replace a node inside the graph do not apply.

    Args:
        evidence: of the original.
        run: the candidate; it gets inputs by name and must not change them.
        on_case: called before each case, for progress.
    """
    findings: list[Finding] = []
    figures: list[Figures] = []
    labels: list[str] = []
    for known in evidence.cases:
        if known.case.overrides:
            continue
        label = known.case.label
        labels.append(label)
        if on_case is not None:
            on_case(label)
        given = {name: t.clone() for name, t in known.case.inputs.items()}
        try:
            got = run(given)
        except Exception as error:  # noqa: BLE001  # whatever a runtime raises is a finding about the file
            first = (str(error).splitlines() or [type(error).__name__])[0]
            findings.append(Finding("structure", "the candidate", label, f"it does not run: {first}"))
            continue
        changed = [n for n, t in given.items() if not _same(t, known.case.inputs[n])]
        if changed:
            findings.append(Finding("structure", changed[0], label, "the candidate wrote into its input"))
        findings += _names(known.outputs, got, label)
        for name, one in known.outputs.items():
            if name in got:
                result = compare(name, label, one, got[name], None)
                findings += result.findings
                figures += [result.figures] if result.figures is not None else []
    if findings:
        outcome = Outcome.DIFFERENT
    else:
        outcome = Outcome.EQUIVALENT if labels else Outcome.INCONCLUSIVE
    return Verdict(outcome, tuple(findings), tuple(figures), evidence.skipped, evidence.seed, tuple(labels))


def _names(wanted: Iterable[str], got: Iterable[str], label: str) -> list[Finding]:
    expected, found = set(wanted), set(got)
    return [Finding("structure", n, label, "the candidate lacks this output") for n in sorted(expected - found)] + [
        Finding("structure", n, label, "the candidate has this output, the original has not")
        for n in sorted(found - expected)
    ]


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(((left == right) | ((left != left) & (right != right))).all())
