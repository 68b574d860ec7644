"""Which cases are worth, and fit into, the machine."""

from collections.abc import Iterable
from math import prod
from typing import Final, Protocol, TypeVar

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.analysis.concrete_shapes import ConcreteShapes
from flowopt.analysis.flops import flops
from flowopt.program.program import Program
from flowopt.sandbox.free_memory import free_bytes

DEFAULT_BUDGET_TFLOP: Final = 2.0
_TERA, _GIGA = 1e12, 1e9
# Evidence keeps of every output element the original, the oracle and the own error, and sometimes a doubt.
_KEPT_BYTES = 4 + 8 + 8 + 1
# The candidate, its twin, and what a comparison makes of them.
_COMPARED_BYTES = 40


class Sized(Protocol):
    """A case, or the plan of one."""

    @property
    def sizes(self) -> dict[str, int]:
        """Free dimension to size."""

    @property
    def label(self) -> str:
        """Name and sizes."""


Planned = TypeVar("Planned", bound=Sized)


def within_budget(
    program: Program,
    cases: Iterable[Planned],
    *,
    budget_tflop: float = DEFAULT_BUDGET_TFLOP,
    memory_bytes: int | None = None,
) -> tuple[tuple[Planned, ...], tuple[str, ...]]:
    """Cases to run, and a sentence for each of the others. Nothing is allocated.

    Args:
        program: what runs.
        cases: cases or, better, plans of cases.
        budget_tflop: the most floating point operations of one run, in 10^12.
        memory_bytes: the most that the evidence of all kept cases and the float64 oracle of one may take together;
            None: what is free now, where that is known.
    """
    available = free_bytes() if memory_bytes is None else memory_bytes
    kept: list[Planned] = []
    skipped: list[str] = []
    evidence_bytes = 0
    for case in cases:
        elements = _output_elements(program, case)
        needed = evidence_bytes + _KEPT_BYTES * elements
        # What is compared comes after the oracle, whose activations are gone by then.
        needed += max(activation_bytes(program, case.sizes, raised=True), _COMPARED_BYTES * elements)
        problem = _too_long(program, case, budget_tflop) or _too_large(needed, available)
        if problem:
            skipped.append(f"{case.label}: skipped, {problem}")
        else:
            kept.append(case)
            evidence_bytes += _KEPT_BYTES * elements
    return tuple(kept), tuple(skipped)


def _output_elements(program: Program, case: Sized) -> int:
    shapes = ConcreteShapes(program, case.sizes)
    found = (shapes.of(node) for node in program.graph.output_node().all_input_nodes)
    return sum(prod(shape) for shape in found if shape is not None)


def _too_long(program: Program, case: Sized, budget_tflop: float) -> str:
    operations = flops(program, case.sizes)
    if operations is None or operations <= budget_tflop * _TERA:
        return ""
    return f"{_short(operations / _TERA)} TFLOP is above --case-budget {budget_tflop:g}"


def _too_large(needed: int, available: int | None) -> str:
    if available is None or needed <= available:
        return ""
    return f"it needs about {_short(needed / _GIGA)} GB of memory, and {_short(available / _GIGA)} GB are free"


def _short(number: float) -> str:
    """Two digits, and whole numbers from 10 on: 3.1, 21, 4000."""
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"
