"""Evidence: what is known of the original on every case, computed once per run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.ir.evaluate import evaluate
from flowopt.ir.float64 import raised_tensor
from flowopt.program.program import Program
from flowopt.verification.cases import Case, quick_cases
from flowopt.verification.ensemble import COPIES, moved_by_one_ulp


@dataclass(frozen=True, slots=True)
class OutputEvidence:
    """One output in one case.

    Attributes:
        oracle: the float64 oracle's value (integers and booleans as the original gives them).
        original: the original's own value.
        own_error: |original - oracle|, the largest over the original and its one-ulp ensemble, per element; zero
            where the oracle or the original is not finite. None for integers and booleans.
    """

    oracle: Tensor
    original: Tensor
    own_error: Tensor | None


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


def collect_evidence(program: Program, *, seed: int = 0, on_case: Callable[[str], None] | None = None) -> Evidence:
    """Run the oracle, the original and its ensemble on every case; copies are made as weights are read.

    A case that the original itself cannot run (sizes that the model refuses) is skipped and named.
    """
    found: list[CaseEvidence] = []
    skipped: list[str] = []
    for case in quick_cases(program, seed):
        if on_case is not None:
            on_case(case.label)
        try:
            original = run_case(program, case)
        except (RuntimeError, IndexError, ValueError) as error:
            skipped.append(f"{case.label}: the original does not run: {str(error).splitlines()[0]}")
            continue
        oracle = run_case(program, case, raised=True)
        errors = {name: _own_error(oracle[name], value) for name, value in original.items()}
        for copy in range(COPIES):
            moved = run_case(program, case, read=moved_reader(program, copy, seed))
            for name, error in errors.items():
                if error is not None:
                    torch.maximum(error, _distance(oracle[name], moved[name], original[name]), out=error)
        outputs = {n: OutputEvidence(oracle[n], original[n], errors[n]) for n in original}
        found.append(CaseEvidence(case, outputs))
    return Evidence(tuple(found), tuple(skipped), seed)


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


def _maybe_raised(tensors: Mapping[str, Tensor], raised: bool) -> dict[str, Tensor]:
    return {name: raised_tensor(t) if raised else t for name, t in tensors.items()}


def _own_error(oracle: Tensor, original: Tensor) -> Tensor | None:
    return _distance(oracle, original, original) if original.is_floating_point() else None


def _distance(oracle: Tensor, value: Tensor, original: Tensor) -> Tensor:
    """|value - oracle| in float64; zero where one of them, or the original, is not finite."""
    error = (value.to(torch.float64) - oracle).abs()
    return torch.where(torch.isfinite(error) & torch.isfinite(original), error, 0.0)
