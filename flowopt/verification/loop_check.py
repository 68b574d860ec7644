"""Judge the file of a sampler: each step where it gets the exact state, and the whole from noise to sample."""

from collections.abc import Callable, Sequence

from torch import Tensor

from flowopt.report.loop import LoopCase
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.verification.loop_evidence import Inputs, LoopEvidence, Sampled, relative
from flowopt.verification.precision import strict_float32

Step = Callable[[Inputs], dict[str, Tensor]]

# Relative, in float64: folding is an identity but for the order of sums. Times the amplification.
_FOLD = 1e-9
# Relative to the largest number of a step's output: some roundings of float32. Times the amplification in the end.
_STEP = 1e-6
# A candidate may be some times worse than the network itself in its own precision.
_OWN = 4.0
_MOST_FINDINGS = 3


def check_loop(
    evidence: Sequence[LoopEvidence | str], candidate: Sampled, step: Step, *, seed: int = 0
) -> tuple[Verdict, tuple[LoopCase, ...]]:
    """Compare a sampler's file with the network on every batch.

    Steps are teacher-forced: each gets the state that the loop in float64 has by then, so errors do not add up and
    are not hidden by later steps. From noise to sample an error of a step may have grown as much as a small change of
    the noise does, which is measured.

    Args:
        evidence: of each batch, or why there is none.
        candidate: the file.
        step: one step of the file by itself: from its inputs by name to its outputs.
        seed: of the batches.
    """
    findings: list[Finding] = []
    cases: list[LoopCase] = []
    figures: list[Figures] = []
    with strict_float32():
        for known in (one for one in evidence if not isinstance(one, str)):
            case = _compared(known, candidate, step)
            cases.append(case)
            figures.append(_figures(known, case))
            findings += _findings(known, case)
    notes = tuple(one for one in evidence if isinstance(one, str))
    outcome = Outcome.DIFFERENT if findings else Outcome.EQUIVALENT if cases else Outcome.INCONCLUSIVE
    labels = tuple(case.case for case in cases)
    return Verdict(outcome, tuple(findings), tuple(figures), notes, seed, labels, "quick"), tuple(cases)


def _compared(known: LoopEvidence, candidate: Sampled, step: Step) -> LoopCase:
    found = candidate(known.case.inputs)
    errors = []
    for one in known.steps:
        outputs = step(one.given)
        errors.append(max(relative(outputs[name], value) for name, value in one.expected.items()))
    return LoopCase(
        known.case.label,
        fold_error=known.fold_error,
        error=relative(found, known.expected),
        own_error=known.own_error,
        amplification=known.amplification,
        allowed=max(_STEP * known.amplification, _OWN * known.own_error),
        step_errors=tuple(errors),
        step_own_errors=tuple(one.own_error for one in known.steps),
        reference_error=None if known.given_sample is None else relative(found, known.given_sample),
    )


def _figures(known: LoopEvidence, case: LoopCase) -> Figures:
    """The whole loop, as verdicts have it: errors absolute."""
    scale = float(known.expected.abs().max())
    return Figures(
        output="sample",
        case=case.case,
        max_error=case.error * scale,
        own_error=case.own_error * scale,
        ratio=case.error / case.allowed,
        twin_error=case.fold_error,
        power=case.allowed,
        elements=known.expected.numel(),
        regime=known.case.regime,
    )


def _findings(known: LoopEvidence, case: LoopCase) -> list[Finding]:
    found: list[Finding] = []
    # A table that was read off in float32 is reproduced as well as it is known.
    limit = max(_FOLD, _OWN * known.table_precision) * case.amplification
    if not case.fold_error <= limit:
        found.append(_finding("fold", "the folded program, in float64", case, case.fold_error, limit))
    for number, (error, own) in enumerate(zip(case.step_errors, case.step_own_errors, strict=True)):
        limit = max(_STEP, _OWN * own)
        if not error <= limit and len(found) < _MOST_FINDINGS:
            found.append(_finding("step", f"step {number}, given the exact state", case, error, limit))
    if not case.error <= case.allowed:
        found.append(_finding("loop", "sample", case, case.error, case.allowed))
    # A loop that was given has an error of its own, like that of the network in a plain loop.
    limit = 2 * case.allowed
    if case.reference_error is not None and not case.reference_error <= limit:
        found.append(_finding("library", "sample, beside the loop given", case, case.reference_error, limit))
    return found


def _finding(gate: str, where: str, case: LoopCase, error: float, allowed: float) -> Finding:
    return Finding(gate, where, case.case, f"{error:.1e} off, relative; allowed are {allowed:.1e}")
