"""Evidence: what is known of the original on every case, computed once per run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.ir.evaluate import evaluate
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.randomness import draws_random_numbers
from flowopt.program.program import Program
from flowopt.verification.cases import Case, quick_cases
from flowopt.verification.ensemble import copies_for, moved_by_one_ulp

# What torch's operators raise for sizes and dtypes that they do not take.
RUN_ERRORS = (RuntimeError, IndexError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class OutputEvidence:
    """One output in one case. Complex values stand as pairs of reals in ``own_error``.

    Attributes:
        oracle: the float64 oracle's value (integers and booleans as the original gives them).
        original: the original's own value.
        own_error: |original - oracle|, the largest over the original and its one-ulp ensemble, per element; zero
            where the oracle or the original is not finite. None for integers and booleans.
        undecided: for integers and booleans, where the oracle or the ensemble decides otherwise than the original;
            None for other outputs.
    """

    oracle: Tensor
    original: Tensor
    own_error: Tensor | None
    undecided: Tensor | None = None


@dataclass(frozen=True, slots=True)
class CaseEvidence:
    """Everything known of the original on one case."""

    case: Case
    outputs: dict[str, OutputEvidence]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The original on all cases, and the cases that it could not run."""

    cases: tuple[CaseEvidence, ...]
    skipped: tuple[str, ...]
    seed: int


def collect_evidence(
    program: Program,
    *,
    seed: int = 0,
    cases: Iterable[Case] | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Evidence:
    """Run the oracle, the original and its ensemble on every case; copies are made as weights are read.

    A case that the original or its oracle cannot run (sizes that the model refuses, an operator without float64) is
    skipped and named; all are when the program draws random numbers.

    Args:
        program: the original.
        seed: of the cases and of the ensemble.
        cases: instead of the cases of level ``quick``.
        on_case: called before each case, for progress.
    """
    drawing = next(filter(draws_random_numbers, program.graph.nodes), None)
    if drawing is not None:
        reason = f"{drawing.name} ({drawing.target}) draws random numbers: no two runs can be compared"
        return Evidence((), (reason,), seed)
    found: list[CaseEvidence] = []
    skipped: list[str] = []
    for case in cases if cases is not None else quick_cases(program, seed):
        if on_case is not None:
            on_case(case.label)
        try:
            original = run_case(program, case)
        except RUN_ERRORS as error:
            skipped.append(f"{case.label}: the original does not run: {first_line(error)}")
            continue
        try:
            oracle = run_case(program, case, raised=True)
        except RUN_ERRORS as error:
            skipped.append(f"{case.label}: the float64 oracle does not run: {first_line(error)}")
            continue
        if any(oracle[name].shape != value.shape for name, value in original.items()):
            skipped.append(f"{case.label}: a size that depends on data is another one in float64")
            continue
        moved = [
            run_case(program, moved_case(case, copy, seed), read=moved_reader(program, copy, seed))
            for copy in range(max((copies_for(value) for value in original.values()), default=0))
        ]
        outputs = {n: scattered(oracle[n], original[n], (m[n] for m in moved)) for n in original}
        found.append(CaseEvidence(case, outputs))
    return Evidence(tuple(found), tuple(skipped), seed)


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def run_case(
    program: Program, case: Case, *, raised: bool = False, read: Callable[[str], Tensor] | None = None
) -> dict[str, Tensor]:
    """Outputs of a program on a case, by name; ``raised`` runs it as its own float64 oracle."""
    raised = raised or program.raised
    reader = read or (raised_reader(program) if raised else program.read)
    values = evaluate(
        program.graph,
        reader,
        _maybe_raised(case.inputs, raised),
        raised=raised,
        override=_maybe_raised(case.overrides, raised),
    )
    return {o.name: v for o, v in zip(program.outputs, values, strict=True)}


def raised_reader(program: Program) -> Callable[[str], Tensor]:
    """Reads a program's tensors in float64."""
    return lambda name: raised_tensor(program.tensors[name])


def moved_reader(program: Program, copy: int, seed: int) -> Callable[[str], Tensor]:
    """Reads one copy of the one-ulp ensemble."""
    return lambda name: moved_by_one_ulp(name, program.tensors[name], copy, seed)


def moved_case(case: Case, copy: int, seed: int) -> Case:
    """The case with its float inputs moved like the weights: rounding before the first operator is rounding too."""
    inputs = {name: moved_by_one_ulp(f"input {name}", t, copy, seed) for name, t in case.inputs.items()}
    overrides = {name: moved_by_one_ulp(f"input {name}", t, copy, seed) for name, t in case.overrides.items()}
    return Case(case.name, case.sizes, inputs, overrides)


def scattered(oracle: Tensor, original: Tensor, moved: Iterable[Tensor]) -> OutputEvidence:
    """Evidence of one value out of the oracle, the original and its ensemble."""
    own = own_error(oracle, original)
    undecided = oracle != original if own is None else None
    for value in moved:
        if value.shape != original.shape:
            continue  # a size that depends on data
        if own is not None:
            torch.maximum(own, distance(oracle, value, original), out=own)
        elif undecided is not None:
            undecided |= value != original
    return OutputEvidence(oracle, original, own, undecided)


def _maybe_raised(tensors: Mapping[str, Tensor], raised: bool) -> dict[str, Tensor]:
    return {name: raised_tensor(t) if raised else t for name, t in tensors.items()}


def as_real(value: Tensor) -> Tensor:
    """A complex tensor as pairs (real, imaginary) on a new last axis; others as they are."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def own_error(oracle: Tensor, original: Tensor) -> Tensor | None:
    """|original - oracle| per element; None for integers and booleans."""
    is_discrete = not (original.is_floating_point() or original.is_complex())
    return None if is_discrete else distance(oracle, original, original)


def distance(oracle: Tensor, value: Tensor, original: Tensor) -> Tensor:
    """|value - oracle| in float64; zero where one of them, or the original, is not finite."""
    oracle, value, original = as_real(oracle), as_real(value), as_real(original)
    error = (value.to(torch.float64) - oracle).abs()
    return torch.where(torch.isfinite(error) & torch.isfinite(original), error, 0.0)
