"""A causal model as a step: prepared, taken apart, and proved token by token against the whole."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.ir.float64 import raised_tensor
from flowopt.program.program import Program
from flowopt.recurrence.step_program import StepProgram, step_program
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.runtime.stream import Stream
from flowopt.verification.evidence import CaseEvidence, Evidence, collect_evidence
from flowopt.verification.gates import SWALLOWED, compare
from flowopt.verification.precision import strict_float32
from flowopt.verification.running import first_line
from flowopt.verification.weakness import weak_outputs
from flowopt.workflows.pipelines import Pipeline

# One spelling of every operator, and masks and shapes that are known. Constants are folded in the step: folded before,
# in the model's own precision, they would be so in its float64 twin too.
_PREPARATION: Final = (
    "canonicalize-aten",
    "eliminate-no-ops",
    "eliminate-common-subexpressions",
    "simplify-masks",
    "simplify-shapes",
)
# The states of an example are those behind its first tokens: zeros would say little of the rest.
_WARM: Final = 4


def recurrent(
    program: Program,
    *,
    sequence: str | None = None,
    verify: bool = True,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> StepProgram:
    """The step of a causal model, and the verdict on it.

    Args:
        program: never changed.
        sequence: the free dimension of its tokens; None: the one along which anything is carried.
        verify: run it token by token against the model on whole sequences.
        seed: of the cases.
        on_progress: gets one line per part.

    Returns:
        The step, its ``recurrence`` with a verdict. The example of each state is what the first tokens leave.

    Raises:
        UserError: the model cannot go token by token; or which dimension is meant is not clear.
    """
    on_progress("preparing the model")
    prepared = Pipeline(_PREPARATION).run(program, verify="each" if verify else "off", seed=seed).program
    made = step_program(prepared, sequence) if sequence is not None else _found(prepared)
    made = dataclasses.replace(made, program=_warmed(made, prepared))
    if not verify:
        return made
    with strict_float32():
        evidence = collect_evidence(program, seed=seed, on_case=lambda label: on_progress(f"the whole model: {label}"))
        # Taken apart once more in float64: coefficients of the step are rounded where they are stored.
        twin = step_program(prepared.raised_copy(), made.recurrence.sequence).program
        verdict = _verdict(program, made, twin, evidence, on_progress)
    return dataclasses.replace(made, recurrence=dataclasses.replace(made.recurrence, verdict=verdict))


def _found(program: Program) -> StepProgram:
    """Along the dimension where anything is carried; along a batch every model goes row by row."""
    refused: list[UserError] = []
    for dim in program.dims:
        try:
            made = step_program(program, dim.name)
        except UserError as error:
            refused.append(error)
            continue
        if made.recurrence.states:
            return made
    if refused:
        raise refused[-1]
    raise UserError(
        "the model carries nothing from token to token",
        why="along each free dimension its rows are independent, or it has none",
        hint="capture it with a free sequence length: --dynamic ids=batch,sequence",
    )


def _warmed(made: StepProgram, whole: Program) -> Program:
    """The step's program with the states that the example's first tokens leave as example."""
    axes, program = made.recurrence.token_axes, made.program
    given = {i.name: whole.example.get(i.name) for i in whole.inputs}
    inputs = {name: value for name, value in given.items() if value is not None}
    if len(inputs) != len(given):
        return program
    first = {
        name: v.narrow(axes[name], 0, min(_WARM, v.shape[axes[name]])) for name, v in inputs.items() if name in axes
    }
    stream = Stream(program.run_named, made.recurrence, {d.name: d.traced for d in program.dims})
    stream.run(**(inputs | first))
    return dataclasses.replace(program, example=program.example | dict(stream.states))


def _verdict(
    program: Program, made: StepProgram, twin: Program, evidence: Evidence, on_progress: Callable[[str], None]
) -> Verdict:
    findings: list[Finding] = []
    figures: list[Figures] = []
    # Values that take a node's place stand for whole sequences.
    cases = [known for known in evidence.cases if not known.case.overrides]
    for known in cases:
        on_progress(f"token by token: {known.case.label}")
        for one in _judged(made, twin, known):
            (figures if isinstance(one, Figures) else findings).append(one)  # type: ignore[arg-type]  # each in its list
    labels = tuple(known.case.label for known in cases)
    if findings:
        return Verdict(Outcome.DIFFERENT, tuple(findings), tuple(figures), evidence.skipped, evidence.seed, labels)
    weak = ["no case was left to compare the outputs in"]
    if figures:
        weak = weak_outputs(figures, {o.name: o.dtype for o in program.outputs}, evidence.narrowest)
    outcome = Outcome.INCONCLUSIVE if weak else Outcome.EQUIVALENT
    return Verdict(outcome, (), tuple(figures), (*weak, *evidence.skipped), evidence.seed, labels)


def _judged(made: StepProgram, twin: Program, known: CaseEvidence) -> Iterator[Figures | Finding]:
    label, sizes = known.case.label, known.case.sizes
    try:
        found = Stream(made.program.run_named, made.recurrence, sizes).run(**known.case.inputs)
        inputs = {name: raised_tensor(value) for name, value in known.case.inputs.items()}
        raised = Stream(twin.run_named, made.recurrence, sizes, dtype=torch.float64).run(**inputs)
    except RUN_ERRORS as error:
        yield Finding("structure", "the step", label, f"it does not run: {first_line(error)}")
        return
    for name, one in known.outputs.items():
        # Of what lies ahead a whole sequence takes the zeroth part, and that of NaN is NaN; a transform spreads it over
        # all tokens. A step has not seen it.
        result = compare(name, label, one, found[name], _spread(raised[name], one.oracle))
        yield from (f for f in result.findings if not (f.gate == "specials" and f.message.startswith(SWALLOWED)))
        if result.figures is not None:
            yield dataclasses.replace(result.figures, regime=known.case.regime)


def _spread(value: Tensor, oracle: Tensor) -> Tensor:
    """A value of the step's twin, with what is no number in the whole sequence's."""
    return value if value.shape != oracle.shape else torch.where(torch.isfinite(oracle), value, oracle)
