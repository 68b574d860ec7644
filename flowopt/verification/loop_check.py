"""Judge the file of a sampler: each step where it gets the exact state, and the whole from noise to sample."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.program.sampler_program import SamplerProgram
from flowopt.report.loop import LoopCase
from flowopt.report.verdict import Finding
from flowopt.verification.inputs.case import Case
from flowopt.verification.precision import strict_float32

Inputs = Mapping[str, Tensor]
Sampled = Callable[[Inputs], Tensor]

# Relative, in float64: folding is an identity but for the order of sums. Times the amplification.
_FOLD = 1e-9
# Relative to the largest number of a step's output: some roundings of float32. Times the amplification in the end.
_STEP = 1e-6
# A candidate may be some times worse than the network itself in its own precision.
_OWN = 4.0
_MOST_AMPLIFIED = 1e3
_NUDGE = 1e-6


@final
@dataclass(frozen=True, slots=True, eq=False)
class Loops:
    """Ways to make the same sample.

    Attributes:
        exact: the network in float64, in a plain loop.
        original: the network in its own precision, in a plain loop.
        folded: the folded program before passes touched it.
        candidate: the file.
        candidate_step: one step of the file by itself: its inputs by name to its outputs.
        library: somebody's own loop; None where there is none.
    """

    exact: Sampled
    original: Sampled
    folded: SamplerProgram
    candidate: Sampled
    candidate_step: Callable[[Inputs], dict[str, Tensor]]
    library: Sampled | None = None


def check_loop(loops: Loops, case: Case) -> Iterator[LoopCase | Finding | str]:
    """Compare a sampler's file with the network on one batch.

    Steps are teacher-forced: each gets the state that the loop in float64 has by then, so errors do not add up and
    are not hidden by later steps. From noise to sample an error of a step may have grown as much as a small change of
    the noise does, which is measured.

    Args:
        loops: the ways to make a sample.
        case: the sampler's inputs.
    """
    label = case.label
    with strict_float32():
        try:
            expected = loops.exact(case.inputs)
        except RUN_ERRORS as problem:
            yield f"{label}: the network does not run in float64: {(str(problem).splitlines() or [''])[0]}"
            return
        if not expected.isfinite().all():
            yield f"{label}: the sample is not finite in float64, so nothing can be compared"
            return
        steps = _Steps(loops)
        twin = steps.run(case.inputs)
        amplification = _amplification(loops, case.inputs, expected)
        found, own = loops.candidate(case.inputs), loops.original(case.inputs)
        library = None if loops.library is None else loops.library(case.inputs)
    fold_error, error, own_error = relative(twin, expected), relative(found, expected), relative(own, expected)
    library_error = None if library is None else relative(found, library)
    allowed = max(_STEP * amplification, _OWN * own_error)
    yield LoopCase(
        label,
        fold_error,
        error,
        own_error,
        amplification,
        allowed,
        tuple(steps.errors),
        tuple(steps.own),
        library_error,
    )
    if not fold_error <= _FOLD * amplification:
        yield Finding("fold", "the folded program", label, f"in float64 it is {fold_error:.1e} from the network's loop")
    for number, (one, its) in enumerate(zip(steps.errors, steps.own, strict=True)):
        if not one <= max(_STEP, _OWN * its):
            limit = f"allowed are {max(_STEP, _OWN * its):.1e}"
            yield Finding("step", f"step {number}", label, f"given the exact state it is {one:.1e} off; {limit}")
    if not error <= allowed:
        yield Finding("loop", "sample", label, f"it is {error:.1e} off; allowed are {allowed:.1e}")
    # A library's own loop has an error of its own, like the network's in a plain loop.
    if library_error is not None and not library_error <= 2 * allowed:
        yield Finding(
            "library", "sample", label, f"it is {library_error:.1e} from the loop given; allowed {2 * allowed:.1e}"
        )


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference in parts of the largest number expected; infinite for other shapes or where not finite."""
    if found.shape != expected.shape:
        return float("inf")
    scale = float(expected.double().abs().max()) if expected.numel() else 0.0
    difference = float((found.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0 and difference == difference else float("inf")


class _Steps:
    """The folded program in float64, and each step of the candidate beside it."""

    def __init__(self, loops: Loops) -> None:
        self._loops, self._twin = loops, loops.folded.raised_copy()
        self.errors: list[float] = []
        self.own: list[float] = []

    def run(self, inputs: Inputs) -> Tensor:
        """The sample of the folded program in float64."""
        raised = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        outputs = self._twin.run_named(raised, observe=self._observe)
        return next(iter(outputs.values()))

    def _observe(self, number: int, feed: Inputs, outputs: Inputs) -> None:
        del outputs  # of the state in float64; the candidate gets it rounded
        step, loop = self._loops.folded.step, self._loops.folded.loop
        given = {i.name: feed[i.name].to(i.dtype) for i in step.inputs}
        given |= {name: loop.tables[name][number] for name in loop.tables}
        exact = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
        exact |= {name: loop.exact_tables[name][number] for name in loop.tables if name in loop.exact_tables}
        expected = self._twin.step.run_named(exact)
        own, found = step.run_named(given), self._loops.candidate_step(given)
        self.errors.append(max(relative(found[name], value) for name, value in expected.items()))
        self.own.append(max(relative(own[name], value) for name, value in expected.items()))


def _amplification(loops: Loops, inputs: Inputs, expected: Tensor) -> float:
    """How many times larger a small change of the noise is in the end; 1 to 1000."""
    first = next(iter(inputs))
    noise = inputs[first].double()
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nudged = loops.exact({**inputs, first: noise + _NUDGE * direction})
    grown = float((nudged - expected).norm() / (_NUDGE * direction.norm()))
    return min(max(grown, 1.0), _MOST_AMPLIFIED) if grown == grown else _MOST_AMPLIFIED
