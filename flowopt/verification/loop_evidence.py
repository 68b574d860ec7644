"""What is known of a sampler on one batch before anything is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.program.sampler_program import SamplerProgram
from flowopt.verification.inputs.case import Case
from flowopt.verification.precision import strict_float32

Inputs = Mapping[str, Tensor]
Sampled = Callable[[Inputs], Tensor]

_MOST_AMPLIFIED = 1e3
_NUDGE = 1e-6


@final
@dataclass(frozen=True, slots=True, eq=False)
class Loops:
    """The sampler in other ways than the file that is judged.

    Attributes:
        exact: the network in float64, in a plain loop.
        original: the network in its own precision, in a plain loop.
        folded: the folded program before passes touched it.
        given_loop: somebody's own loop; None where there is none.
        table_precision: relative, of the sampler's numbers.
    """

    exact: Sampled
    original: Sampled
    folded: SamplerProgram
    given_loop: Sampled | None = None
    table_precision: float = 0.0


@final
@dataclass(frozen=True, slots=True, eq=False)
class StepEvidence:
    """One step: what it gets, what comes out in float64, and the error of the network's own precision."""

    given: Inputs
    expected: Inputs
    own_error: float


@final
@dataclass(frozen=True, slots=True, eq=False)
class LoopEvidence:
    """One batch of samples.

    Attributes:
        case: the sampler's inputs.
        expected: the samples in float64.
        fold_error: of the folded program in float64.
        own_error: of the network in its own precision, in a plain loop.
        amplification: how many times larger a small change of the noise is in the end, 1 to 1000.
        steps: each with the state that the loop in float64 has by then, rounded.
        given_sample: of somebody's own loop.
        table_precision: relative, of the sampler's numbers.
    """

    case: Case
    expected: Tensor
    fold_error: float
    own_error: float
    amplification: float
    steps: tuple[StepEvidence, ...]
    given_sample: Tensor | None
    table_precision: float = 0.0


def loop_evidence(loops: Loops, case: Case) -> LoopEvidence | str:
    """Run the sampler in float64 and as it is; or the reason why nothing can be compared.

    Raises:
        UserError: the loop given returns another shape.
    """
    inputs = case.inputs
    with strict_float32():
        try:
            expected = loops.exact(inputs)
        except RUN_ERRORS as problem:
            first = (str(problem).splitlines() or [type(problem).__name__])[0]
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            return f"{case.label}: the network does not run in a plain loop, given {shapes}: {first}"
        if not expected.isfinite().all():
            return f"{case.label}: the sample is not finite in float64, so nothing can be compared"
        given = None if loops.given_loop is None else loops.given_loop(inputs)
        if given is not None and given.shape != expected.shape:
            raise UserError(
                f"the loop given returns {list(given.shape)}, and the samples are {list(expected.shape)}",
                hint="it takes the sampler's inputs by name and returns the sample alone",
            )
        steps: list[StepEvidence] = []
        twin = _twin(loops.folded, inputs, steps)
        return LoopEvidence(
            case,
            expected,
            relative(twin, expected),
            relative(loops.original(inputs), expected),
            _amplification(loops.exact, inputs, expected),
            tuple(steps),
            given,
            loops.table_precision,
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


def _twin(folded: SamplerProgram, inputs: Inputs, steps: list[StepEvidence]) -> Tensor:
    """The sample of the folded program in float64, and its steps."""
    twin, step, loop = folded.raised_copy(), folded.step, folded.loop

    def observe(number: int, feed: Inputs, outputs: Inputs) -> None:
        del outputs  # of the exact state; what is compared gets it rounded
        given = {i.name: feed[i.name].to(i.dtype) for i in step.inputs}
        given |= {name: loop.tables[name][number] for name in loop.tables}
        exact = _raised(given)
        exact |= {name: loop.exact_tables[name][number] for name in loop.tables if name in loop.exact_tables}
        expected = twin.step.run_named(exact)
        own = step.run_named(given)
        steps.append(StepEvidence(given, expected, max(relative(own[name], v) for name, v in expected.items())))

    return next(iter(twin.run_named(_raised(inputs), observe=observe).values()))


def _raised(inputs: Inputs) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}


def _amplification(exact: Sampled, inputs: Inputs, expected: Tensor) -> float:
    first = next(iter(inputs))
    noise = inputs[first].double()
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nudged = exact({**inputs, first: noise + _NUDGE * direction})
    grown = float((nudged - expected).norm() / (_NUDGE * direction.norm()))
    return min(max(grown, 1.0), _MOST_AMPLIFIED) if grown == grown else _MOST_AMPLIFIED
