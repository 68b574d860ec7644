"""The cases of a level, within the case budget."""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from flowopt.analysis.graph_numbers import GraphNumbers
from flowopt.program.program import Program
from flowopt.verification.inputs.battery import planned_cases
from flowopt.verification.inputs.case_budget import DEFAULT_BUDGET_TFLOP, within_budget
from flowopt.verification.inputs.case_plan import CasePlan
from flowopt.verification.inputs.cases import Case, quick_cases
from flowopt.verification.levels import Level

_LARGEST: Final = "joint-maximum"
_NO_NUMBERS: Final = GraphNumbers()


def selected_cases(
    program: Program,
    level: Level,
    seed: int,
    *,
    budget_tflop: float = DEFAULT_BUDGET_TFLOP,
    data: Iterable[Case] = (),
    numbers: GraphNumbers = _NO_NUMBERS,
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Cases to run, and a sentence for each that is skipped because it is too large.

    User data follows the named cases; the joint maximum, which may take all memory that is left, comes after it.

    Args:
        program: the original.
        level: ``quick`` or ``full``; at ``full`` the example that the program was captured with is a case too.
        seed: of the values.
        budget_tflop: the most floating point operations of one run, in 10^12.
        data: cases of the user's own.
        numbers: that a candidate names, for level ``full``.
    """
    named: list[Case | CasePlan] = [
        *(quick_cases(program, seed) if level == "quick" else planned_cases(program, seed, numbers))
    ]
    largest = [plan for plan in named if plan.name == _LARGEST]
    others = [plan for plan in named if plan.name != _LARGEST]
    example = _example(program) if level == "full" else ()
    wanted = chain(others, example, data, largest)
    kept, skipped = within_budget(program, wanted, budget_tflop=budget_tflop)
    return tuple(one if isinstance(one, Case) else one.make() for one in kept), skipped


def _example(program: Program) -> tuple[Case, ...]:
    """What the user captured the model with: the only numbers so far that are known to matter."""
    given = {i.name: program.tensors[i.state] for i in program.inputs if i.state is not None} | dict(program.example)
    if any(i.name not in given for i in program.inputs):
        return ()  # archives come without one
    sizes = {d.name: d.traced for d in program.dims}
    return (Case("example", sizes, given, regime="example", is_natural=True),)
