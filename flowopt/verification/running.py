"""Run a program on cases: as it is, as its float64 oracle, or with weights moved by an ulp."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, fx

from flowopt.ir.evaluate import Feed, Value, evaluate_together
from flowopt.ir.float64 import raised_tensor
from flowopt.program.program import Program
from flowopt.verification.ensemble import moved_by_one_ulp
from flowopt.verification.inputs.cases import Case
from flowopt.verification.parallel import in_parallel

Outputs = dict[str, Tensor]
Read = Callable[[str], Tensor]
Observe = Callable[[fx.Node, Value], None]


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def run_case(program: Program, case: Case, *, raised: bool = False, read: Read | None = None) -> Outputs:
    """Outputs of a program on a case, by name; ``raised`` runs it as its own float64 oracle.

    Raises:
        Exception: what an operator raised, one of ``flowopt.ir.evaluate.RUN_ERRORS``.
    """
    (found,) = run_cases(program, [case], raised=raised, read=read)
    if isinstance(found, Exception):
        raise found
    return found


def run_cases(
    program: Program,
    cases: Sequence[Case],
    *,
    raised: bool = False,
    read: Read | None = None,
    observe: Sequence[Observe] | None = None,
    overrides: Sequence[Mapping[str, Value]] | None = None,
) -> list[Outputs | Exception]:
    """Outputs of a program on each case, or what an operator raised for it.

    Cases walk through the graph together, so that a stored tensor is raised or moved once for all of them.

    Args:
        program: what runs; a raised program always runs raised.
        cases: that fit into memory together.
        raised: run the program as its own float64 oracle.
        read: the stored tensor of a name, instead of the program's own.
        observe: per case, called with every computed node and its value.
        overrides: per case, values in the place of nodes, beside the case's own.
    """
    raised = raised or program.raised
    feeds = [
        Feed(
            _maybe_raised(case.inputs, raised),
            {**_maybe_raised(case.overrides, raised), **(overrides[i] if overrides is not None else {})},
            observe[i] if observe is not None else None,
        )
        for i, case in enumerate(cases)
    ]

    def run(share: Sequence[Feed]) -> list[tuple[Value, ...] | Exception]:
        return evaluate_together(program.graph, read or program.tensors.__getitem__, share, raised=raised)

    return [
        values if isinstance(values, Exception) else {o.name: v for o, v in zip(program.outputs, values, strict=True)}
        for values in in_parallel(run, feeds, raised=raised)
    ]


def moved_reader(program: Program, copy: int, seed: int) -> Read:
    """Reads one copy of the one-ulp ensemble."""
    return lambda name: moved_by_one_ulp(name, program.tensors[name], copy, seed)


def moved_case(case: Case, copy: int, seed: int) -> Case:
    """The case with its float inputs moved like the weights: rounding before the first operator is rounding too."""
    inputs = {name: moved_by_one_ulp(f"input {name}", t, copy, seed) for name, t in case.inputs.items()}
    overrides = {name: moved_by_one_ulp(f"input {name}", t, copy, seed) for name, t in case.overrides.items()}
    return replace(case, inputs=inputs, overrides=overrides)


def _maybe_raised(tensors: Mapping[str, Tensor], raised: bool) -> dict[str, Tensor]:
    return {name: raised_tensor(t) if raised else t for name, t in tensors.items()}
