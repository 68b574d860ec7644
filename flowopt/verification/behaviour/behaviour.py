"""Behaviour of a candidate beyond the numbers of one call.

About twelve calls, on two cases: the same call again, in other company, after its answer was written to, with inputs
that lie elsewhere in memory, with other numbers of threads, with other samples beside.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from flowopt.report.verdict import Finding
from flowopt.verification.behaviour.answers import GATE, Answer, Runner, ask, differences, fresh, gated
from flowopt.verification.behaviour.batch_invariance import check_batch_invariance
from flowopt.verification.behaviour.layout_check import check_layouts, check_shared_input
from flowopt.verification.behaviour.layouts import at_offset
from flowopt.verification.behaviour.returned_memory import check_overwritten, check_written_to
from flowopt.verification.behaviour.thread_check import check_threads
from flowopt.verification.evidence import CaseEvidence, Evidence


def check_behaviour(
    evidence: Evidence,
    run: Runner,
    *,
    threads: Sequence[int] | None = None,
    with_threads: Callable[[int], Runner] | None = None,
) -> Iterator[Finding | str]:
    """Findings and notes on how a candidate behaves from call to call.

    - Calls with the same inputs give the same bits: twice in a row, after another case, and after the returned
      tensors were written to; a later call does not write to them.
    - Inputs that are strided, start inside their storage, lie in transposed order, have rows with stride 0 or are one
      tensor given twice pass the rounding gate; other bits are a note.
    - With each number of threads, two calls give the same bits and pass the rounding gate.
    - A sample gives the same with other samples beside it, where the model's own oracle does: beyond the rounding
      gate is a finding, other bits are a note.

    Whether inputs stay as they are is checked with every case (``verify_outputs``). Inputs without elements need no
    check of their own: the free dimensions of a program start at 1. Cases that replace a node are passed over.

    Args:
        evidence: of the original; the first natural case and ``prime`` are used.
        run: the candidate, as it is.
        threads: numbers of threads; None: one, and as many as this process may use.
        with_threads: opens the candidate with a number of threads, for runtimes that fix it when they open (ONNX
            Runtime). None: torch's number counts, and is as before in the end.
    """
    cases = [known for known in evidence.cases if not known.case.overrides]
    if not cases:
        return
    natural = next((known for known in cases if known.case.is_natural), cases[0])
    first = ask(run, fresh(natural.case.inputs))
    if first.problem:
        yield f"{natural.case.label}: its behaviour was not checked: {first.problem}"
        return
    problem = _repeated(natural, first, ask(run, fresh(natural.case.inputs)))
    if problem is not None:
        yield problem
    else:
        yield from _check_company(cases, natural, first, run)
    yield from check_layouts(natural, first, run)
    # After the call with equal rows, which had the same sizes and other numbers.
    yield from check_overwritten(natural, first)
    yield from check_shared_input(cases, run)
    yield from check_threads(natural, first, run, counts=threads, with_threads=with_threads, repeats=problem is None)
    if problem is None:
        yield from check_batch_invariance(cases, run, {natural.case.label: first})


def _repeated(natural: CaseEvidence, first: Answer, second: Answer) -> Finding | None:
    for name, message in differences(natural, first, second).items():
        return Finding(GATE, name, natural.case.label, f"called twice with the same inputs, it differs: {message}")
    return None


def _check_company(
    cases: Sequence[CaseEvidence], natural: CaseEvidence, first: Answer, run: Runner
) -> Iterator[Finding | str]:
    """Another case, then the first one again; then the first one after its answer was written to."""
    others = [known for known in cases if known is not natural]
    other = next((known for known in others if known.case.name == "prime"), others[0] if others else natural)
    # The oracle knows the other case too, so that its call can test one more thing.
    moved = {name: at_offset(value) for name, value in other.case.inputs.items()}
    plain = partial(ask, run, fresh(other.case.inputs))
    yield from gated(other, ask(run, moved), "with inputs that start inside their storage", plain)
    again = ask(run, fresh(natural.case.inputs))
    for name, message in differences(natural, first, again).items():
        what = f"called again after {other.case.label}, the same inputs give another answer: {message}"
        yield Finding(GATE, name, natural.case.label, what)
        return
    yield from check_written_to(cases, natural, again, run)
