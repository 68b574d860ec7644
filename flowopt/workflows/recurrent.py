"""A causal model as a step: prepared, taken apart, and proved token by token against the whole."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
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
from flowopt.verification.inputs import regimes
from flowopt.verification.inputs.case_budget import DEFAULT_BUDGET_TFLOP
from flowopt.verification.inputs.case_sizes import within
from flowopt.verification.inputs.cases import Case, case_of
from flowopt.verification.inputs.selected_cases import selected_cases
from flowopt.verification.levels import Level
from flowopt.verification.masked_rows import MASKED_ROW, judged_beside_masked_row
from flowopt.verification.output_evidence import OutputEvidence
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
# Tokens of the case that sees what is wrong far apart, where the model takes as many.
_LONG: Final = 256


def recurrent(
    program: Program,
    *,
    sequence: str | None = None,
    verify: bool = True,
    seed: int = 0,
    level: Level = "quick",
    case_budget: float = DEFAULT_BUDGET_TFLOP,
    on_progress: Callable[[str], None] = lambda _: None,
) -> StepProgram:
    """The step of a causal model, and the verdict on it.

    Args:
        program: never changed.
        sequence: the free dimension of its tokens; None: the one along which anything is carried.
        verify: run it token by token against the model on whole sequences.
        seed: of the cases.
        level: ``quick``: four named cases; ``full``: the whole battery; both with a long sequence beside them.
        case_budget: in TFLOP; a case that costs the model more is skipped and named.
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
    cases, skipped = selected_cases(
        program, level, seed, budget_tflop=case_budget, data=(_long(program, made.recurrence.sequence, seed),)
    )
    with strict_float32():
        found = collect_evidence(
            program, seed=seed, cases=cases, on_case=lambda label: on_progress(f"the whole model: {label}")
        )
        evidence = dataclasses.replace(found, skipped=(*skipped, *found.skipped))
        # Taken apart once more in float64: coefficients of the step are rounded where they are stored.
        twin = step_program(prepared.raised_copy(), made.recurrence.sequence).program
        verdict = _verdict(program, made, twin, evidence, level, on_progress)
    return dataclasses.replace(made, recurrence=dataclasses.replace(made.recurrence, verdict=verdict))


def _found(program: Program) -> StepProgram:
    """Along the dimension where anything is carried; along a batch every model goes row by row."""
    refused: dict[str, UserError] = {}
    for dim in program.dims:
        try:
            made = step_program(program, dim.name)
        except UserError as error:
            refused[dim.name] = error
            continue
        if made.recurrence.states:
            return made
    if refused:
        raise _none_of(program, refused)
    raise UserError(
        "the model carries nothing from token to token",
        why="along each free dimension its rows are independent, or it has none",
        hint="capture it with a free sequence length: --dynamic batch=ids:0 --dynamic sequence=ids:1",
    )


def _none_of(program: Program, refused: Mapping[str, UserError]) -> UserError:
    """Which dimension was meant is not known: the reason of each is told."""
    if len(program.dims) == 1:
        return next(iter(refused.values()))
    nothing = "nothing is carried along it"
    reasons = {d.name: refused[d.name].message if d.name in refused else nothing for d in program.dims}
    last = list(refused.values())[-1]
    return UserError(
        "the model is no step along any free dimension\n"
        + "\n".join(f"along {name}: {reason}" for name, reason in reasons.items()),
        why="; ".join(f"along {name}: {error.why}" for name, error in refused.items() if error.why),
        hint=last.hint,
    )


def _long(program: Program, sequence: str, seed: int) -> Case:
    """Many tokens, and little of the rest: faults that only tokens far apart show."""
    sizes = {d.name: within(d, _LONG if d.name == sequence else 1) for d in program.dims}
    return case_of(program, "many-tokens", sizes, regimes.normal, seed)


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
    program: Program,
    made: StepProgram,
    twin: Program,
    evidence: Evidence,
    level: Level,
    on_progress: Callable[[str], None],
) -> Verdict:
    findings: list[Finding] = []
    figures: list[Figures] = []
    notes: list[str] = []
    # Values that take a node's place stand for whole sequences.
    cases = [known for known in evidence.cases if not known.case.overrides]
    for known in cases:
        on_progress(f"token by token: {known.case.label}")
        for one in _judged(made, twin, known):
            if isinstance(one, Finding):
                findings.append(one)
            elif isinstance(one, Figures):
                figures.append(one)
            else:
                notes.append(one)
    labels = tuple(known.case.label for known in cases)
    weak: list[str] = []
    if not findings:
        weak = ["no case was left to compare the outputs in"]
        if figures:
            weak = weak_outputs(figures, {o.name: o.dtype for o in program.outputs}, evidence.narrowest)
    outcome = Outcome.DIFFERENT if findings else Outcome.INCONCLUSIVE if weak else Outcome.EQUIVALENT
    told = (*weak, *notes, *evidence.skipped)
    return Verdict(outcome, tuple(findings), tuple(figures), told, evidence.seed, labels, level)


def _judged(made: StepProgram, twin: Program, known: CaseEvidence) -> Iterator[Figures | Finding | str]:
    label, sizes = known.case.label, known.case.sizes
    try:
        found = Stream(made.program.run_named, made.recurrence, sizes).run(**known.case.inputs)
        inputs = {name: raised_tensor(value) for name, value in known.case.inputs.items()}
        raised = Stream(twin.run_named, made.recurrence, sizes, dtype=torch.float64).run(**inputs)
    except RUN_ERRORS as error:
        yield Finding("structure", "the step", label, f"it does not run: {first_line(error)}")
        return
    for name, one in known.outputs.items():
        yield from _compared(known, name, one, found[name], raised[name])


def _compared(
    known: CaseEvidence, name: str, one: OutputEvidence, found: Tensor, raised: Tensor
) -> Iterator[Figures | Finding | str]:
    label = known.case.label
    # Of what lies ahead a whole sequence takes the zeroth part, and that of NaN is NaN; a transform spreads it over
    # all tokens. A step has not seen it.
    sees_ahead = any(v.is_floating_point() and not bool(v.isfinite().all()) for v in known.case.inputs.values())
    result = compare(name, label, one, found, _spread(raised, one.oracle) if sees_ahead else raised)
    if known.case.name == MASKED_ROW and result.findings:
        yield from judged_beside_masked_row(name, label, one, found, result.findings)
        return
    swallowed = [f for f in result.findings if f.gate == "specials" and f.message.startswith(SWALLOWED)]
    if sees_ahead and swallowed:
        yield f"{label}: {name} is not judged where the whole sequence gives no number, which a step has not seen yet"
    yield from (f for f in result.findings if not sees_ahead or f not in swallowed)
    if result.figures is not None:
        yield dataclasses.replace(result.figures, regime=known.case.regime)


def _spread(value: Tensor, oracle: Tensor) -> Tensor:
    """A value of the step's twin, with what is no number in the whole sequence's."""
    return value if value.shape != oracle.shape else torch.where(torch.isfinite(oracle), value, oracle)
