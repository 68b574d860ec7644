"""A candidate's answer does not depend on how its inputs lie in memory."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Final

from flowopt.report.verdict import Finding
from flowopt.verification.behaviour.answers import Answer, Runner, around, ask, bit_note, differences, fresh, gated
from flowopt.verification.behaviour.equal_bits import same_bits
from flowopt.verification.behaviour.layouts import Layout, first_row, lies_elsewhere, strided, transposed
from flowopt.verification.evidence import CaseEvidence

_LAYOUTS: Final[tuple[tuple[str, Layout], ...]] = (
    ("with strided inputs", strided),
    ("with inputs in transposed memory order", transposed),
)
_EXPANDED: Final = "with inputs whose rows are one row with stride 0"


def check_layouts(known: CaseEvidence, first: Answer, run: Runner) -> Iterator[Finding | str]:
    """The rounding gate for a case with inputs that are strided, transposed in memory, or one row repeated.

    Args:
        known: evidence of the case.
        first: the candidate's answer to it with contiguous inputs.
        run: the candidate.
    """
    for what, layout in _LAYOUTS:
        inputs = fresh(known.case.inputs)
        placed = {name: layout(value) for name, value in inputs.items()}
        if any(lies_elsewhere(inputs[name], value) for name, value in placed.items()):
            yield from _judged(known, first, ask(run, placed), what)
    yield from _check_rows(known, run)


def check_shared_input(cases: Sequence[CaseEvidence], run: Runner) -> Iterator[Finding]:
    """The rounding gate for the first case in which two inputs are equal: one tensor is given for both."""
    for known in cases:
        inputs = known.case.inputs
        for left, right in combinations(inputs, 2):
            if inputs[left].numel() > 1 and same_bits(inputs[left], inputs[right]):
                given = fresh(inputs)
                given[right] = given[left]
                what = f"with one tensor for {left} and {right}"
                yield from gated(known, ask(run, given), what, partial(ask, run, fresh(inputs)))
                return


def _check_rows(known: CaseEvidence, run: Runner) -> Iterator[Finding | str]:
    """Expanded rows have to be equal, which those of no case are: the answer to a contiguous copy is the measure."""
    inputs = fresh(known.case.inputs)
    expanded = {name: first_row(value) for name, value in inputs.items()}
    if not any(lies_elsewhere(inputs[name], value) for name, value in expanded.items()):
        return
    contiguous = ask(run, fresh(expanded))
    if contiguous.problem:
        yield f"{known.case.label}: {_EXPANDED}, it was not checked: {contiguous.problem} with equal rows"
        return
    measure = around(known, contiguous, are_its_inputs=False)
    yield from _judged(measure, contiguous, ask(run, expanded), _EXPANDED)


def _judged(known: CaseEvidence, plain: Answer, answer: Answer, what: str) -> Iterator[Finding | str]:
    findings = list(gated(known, answer, what, lambda: plain))
    yield from findings
    different = differences(known, plain, answer) if not findings else {}
    if different:
        yield f"{known.case.label}: {what}, bits differ within the rounding gate: {bit_note(different)}"
