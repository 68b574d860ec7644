"""What more can be said of a candidate that is a program: it has a float64 form, and its weights can be stressed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowopt.program.program import Program
from flowopt.report.verdict import STRESSED, Figures, Finding
from flowopt.verification.ensemble import COPIES, copies_for
from flowopt.verification.evidence import CaseEvidence, Evidence, collect_evidence
from flowopt.verification.gates import compare
from flowopt.verification.grouping import grouped
from flowopt.verification.inputs.cases import Case
from flowopt.verification.limits import SITE_LIMITS, Limits, site_limits
from flowopt.verification.masked_rows import MASKED_ROW
from flowopt.verification.other_tensors import OtherTensors, moving_reader, other_tensors
from flowopt.verification.output_evidence import OutputEvidence, as_real, distance
from flowopt.verification.rows import row_max
from flowopt.verification.running import Outputs, first_line, run_cases
from flowopt.verification.stress import STRESSED_CASES, stressed, stressed_tensors
from flowopt.verification.twin_gate import TWIN_TOLERANCE

# Of what one-ulp moves of a tensor do. Folds in float32, where rounding is the same for a whole channel, needed at
# most 2.4 and 2.1 (270 of them on four cases each); a factor of 1 + 1e-6 on one weight makes 12 and 7, and in outputs
# one number wide 6 and 4.
_LIMITS = Limits(6.0, 4.0)


def check_program(
    original: Program, candidate: Program, evidence: Evidence, *, with_stress: bool
) -> Iterator[Figures | Finding | str]:
    """Compare both in float64, and, where they store the same tensors, with stressed weights.

    A program that was folded in float32 differs in float64 too, by what rounding its new tensors did. That is
    measured like the original's own error: how far one-ulp moves of the tensors that only one of both stores move
    the oracle.

    Args:
        original: the reference.
        candidate: another program with the same inputs and outputs.
        evidence: of the original.
        with_stress: run stressed weights too.
    """
    others = other_tensors(original, candidate)
    known = [e for e in evidence.cases if not e.case.overrides and e.case.name != MASKED_ROW]
    at = 0
    for group in grouped(original, [e.case for e in known]):
        yield from _check_group(original, candidate, known[at : at + len(group)], others, evidence.seed)
        at += len(group)
    if not with_stress:
        return
    if not stores_the_same(original, candidate):
        yield "stressed weights: not run, the candidate stores other tensors than the original"
        return
    yield from _check_stressed(original, candidate, evidence)


def stores_the_same(original: Program, candidate: Program) -> bool:
    """Whether every tensor of the candidate stands in the original under the same name."""
    return all(
        name in original.tensors and torch.equal(original.tensors[name], tensor)
        for name, tensor in candidate.tensors.items()
    )


@dataclass(frozen=True, slots=True)
class _Scatter:
    """Outputs in float64 before tensors moved, and after."""

    base: Outputs
    moved: tuple[Outputs, ...]

    def distances(self, output: str) -> Iterator[Tensor]:
        base = self.base[output]
        return (distance(base, one[output], base) for one in self.moved if one[output].shape == base.shape)


def _check_group(
    original: Program, candidate: Program, known: Sequence[CaseEvidence], others: OtherTensors, seed: int
) -> Iterator[Finding | str]:
    cases = [one.case for one in known]
    found = run_cases(candidate, cases, raised=True)
    oracles = [{name: one.oracle for name, one in case.outputs.items()} for case in known]
    widths = [copies_for(one.oracle) for case in known for one in case.outputs.values()]
    wanted = max(widths, default=COPIES)
    dropped = _scatters(original, cases, oracles, others.of_original, wanted, seed)
    # Tensors that nothing of the original went into are few and small: constants that were rounded.
    added = _scatters(candidate, cases, found, others.of_candidate, 1 if others.of_original else wanted, seed)
    for at, one in enumerate(known):
        outputs = found[at]
        if isinstance(outputs, Exception):
            yield f"{one.case.label}: not compared in float64, the candidate does not run there: {first_line(outputs)}"
            continue
        for name, evidence in one.outputs.items():
            if name in outputs and outputs[name].shape == evidence.oracle.shape:
                scatters = [d for s in (dropped[at], added[at]) for d in s.distances(name)]
                yield from _compared(name, one.case.label, evidence, outputs[name], scatters)


def _scatters(
    program: Program,
    cases: Sequence[Case],
    bases: Sequence[Outputs | Exception],
    moving: frozenset[str],
    copies: int,
    seed: int,
) -> list[_Scatter]:
    """Per case, outputs in float64 of copies in which some tensors moved by an ulp."""
    moved: list[list[Outputs]] = [[] for _ in cases]
    for copy in range(copies if moving else 0):
        read = moving_reader(program, moving, copy, seed)
        for at, outputs in enumerate(run_cases(program, cases, raised=True, read=read)):
            if not isinstance(outputs, Exception) and not isinstance(bases[at], Exception):
                moved[at].append(outputs)
    return [
        _Scatter({} if isinstance(base, Exception) else base, tuple(one))
        for base, one in zip(bases, moved, strict=True)
    ]


def _compared(
    name: str, label: str, evidence: OutputEvidence, value: Tensor, scatters: Sequence[Tensor]
) -> Iterator[Finding]:
    settled = None if evidence.undecided is None else ~evidence.undecided
    if evidence.own_error is None:
        wrong = value != evidence.oracle if settled is None else (value != evidence.oracle) & settled
        if bool(wrong.any()):
            message = f"in float64, {int(wrong.sum())} of {wrong.numel()} decisions differ"
            yield Finding("discrete", name, label, message)
        return
    oracle, found = as_real(evidence.oracle), as_real(value)
    settled = torch.ones_like(oracle, dtype=torch.bool) if settled is None else settled
    one_sided = (torch.isfinite(oracle) != torch.isfinite(found)) & settled
    if bool(one_sided.any()):
        yield Finding("twin", name, label, f"{int(one_sided.sum())} values are finite on one side only, in float64")
    error = torch.where(settled, distance(oracle, found, oracle), 0.0)
    size = torch.where(settled & torch.isfinite(oracle), oracle.abs(), 0.0)
    scatters = [torch.where(settled, one, 0.0) for one in scatters]
    precision = torch.finfo(torch.float64).eps / torch.finfo(evidence.original.dtype).eps
    rounding = TWIN_TOLERANCE * size + 2 * SITE_LIMITS.largest * precision * evidence.own_error
    message = _in_rows(error, size, rounding, scatters) or _on_the_whole(error, rounding, scatters)
    if message:
        yield Finding("twin", name, label, message)


def _in_rows(error: Tensor, size: Tensor, rounding: Tensor, scatters: Sequence[Tensor]) -> str:
    """What is wrong with the worst row; empty when no row is."""
    if error.numel() == 0:
        return ""
    scale, largest = row_max(size), row_max(error)
    scatter = torch.zeros_like(scale)
    for one in scatters:
        scatter = torch.maximum(scatter, row_max(one))
    visible = scale > 0
    if bool(visible.any()):
        # A short row may hardly scatter by chance.
        scatter = torch.maximum(scatter, (scatter[visible] / scale[visible]).median() * scale)
    allowed = row_max(rounding) + _LIMITS.largest * scatter
    excess = largest - allowed
    at = int(excess.argmax())
    if not excess[at] > 0:
        return ""
    if scale[at] == 0:
        return f"in float64 it differs by {float(largest[at]):.2e} in a row of zeros"
    relative, most = (float(v[at] / scale[at]) for v in (largest, allowed))
    return f"in float64 it differs by {relative:.2e} of the row's scale; {most:.1e} is allowed"


def _on_the_whole(error: Tensor, rounding: Tensor, scatters: Sequence[Tensor]) -> str:
    """A small factor on one weight moves every element a little: no row shows it, all together do."""
    if not scatters:
        return ""  # the rows allow next to nothing
    largest = max(scatters, key=_rms)
    allowed = _rms(rounding) + _rms_limit(largest) * _rms(largest)
    if _rms(error) <= allowed:
        return ""
    return f"in float64 its root mean square error is {_rms(error):.2e}; {allowed:.1e} is allowed"


def _rms_limit(scatter: Tensor) -> float:
    """As in the ratio gate: where a few elements make up all of a root mean square, it is no mean."""
    square = scatter.square()
    fourth = float(square.square().sum())
    contributing = float(square.sum()) ** 2 / fourth if fourth > 0 else float("inf")
    return _LIMITS.rms + (_LIMITS.largest - _LIMITS.rms) / math.sqrt(max(contributing, 1.0))


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt()) if value.numel() else 0.0


def _check_stressed(original: Program, candidate: Program, evidence: Evidence) -> Iterator[Figures | Finding | str]:
    cases = [e.case for e in evidence.cases if e.case.name in STRESSED_CASES and not e.case.overrides]
    found = stressed(original, cases)
    if found is None:
        yield "stressed weights: not run, every factor leaves mostly infinities"
        return
    program, factor = found
    other = replace(candidate.copy(), tensors=stressed_tensors(candidate, factor))
    for known in collect_evidence(program, seed=evidence.seed, cases=cases).cases:
        label = f"stressed x{factor:g} {known.case.label}"
        (outputs,), (raised,) = (run_cases(other, (known.case,), raised=r) for r in (False, True))
        if isinstance(outputs, Exception):
            yield Finding("structure", "the candidate", label, f"it does not run: {first_line(outputs)}")
            continue
        for name, one in known.outputs.items():
            if name in outputs:
                twin = None if isinstance(raised, Exception) else raised[name]
                limits = site_limits(one.original.dtype)
                result = compare(name, label, one, outputs[name], twin, limits=limits, skip_weak_rows=True)
                yield from result.findings
                if result.figures is not None:
                    yield replace(result.figures, regime=f"{STRESSED} {known.case.regime}")
