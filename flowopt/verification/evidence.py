"""Evidence: what is known of the original on every case, computed once per run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowopt.ir.metadata import recorded_tensor
from flowopt.ir.randomness import draws_random_numbers
from flowopt.program.program import Program
from flowopt.verification.decisions.decisions import decisions
from flowopt.verification.decisions.exact_inputs import exact_inputs
from flowopt.verification.decisions.margins import Margins, Turn, Watch
from flowopt.verification.ensemble import copies_for
from flowopt.verification.grouping import grouped
from flowopt.verification.inputs.cases import Case, quick_cases
from flowopt.verification.output_evidence import OutputEvidence, scattered, unsettled, widened
from flowopt.verification.running import Outputs, first_line, moved_case, moved_reader, run_cases

# Multiples of these up to here are masks, counts, pixels and ties, not measured numbers, which hardly ever are ones.
_LARGEST_EXACT = 256.0
_EXACT_STEP = {torch.float16: 1 / 2, torch.bfloat16: 1 / 2}
_EXACT_STEP_OF_OTHERS = 1 / 64


@dataclass(frozen=True, slots=True)
class CaseEvidence:
    """Everything known of the original on one case."""

    case: Case
    outputs: dict[str, OutputEvidence]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The original on all cases, the cases that it could not run, and the narrowest floating dtype of its values."""

    cases: tuple[CaseEvidence, ...]
    skipped: tuple[str, ...]
    seed: int
    narrowest: torch.dtype = torch.float32


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
    for group in grouped(program, cases if cases is not None else quick_cases(program, seed)):
        for case in group:
            if on_case is not None:
                on_case(case.label)
        for one in _Group(program, group, seed).evidence():
            if isinstance(one, str):
                skipped.append(one)
            else:
                found.append(one)
    return Evidence(tuple(found), tuple(skipped), seed, narrowest(program))


def narrowest(program: Program) -> torch.dtype:
    """The floating dtype of the fewest digits among a program's values; float32 where there is none."""
    values = (recorded_tensor(node) for node in program.graph.nodes)
    floats = {value.dtype for value in values if value is not None and value.is_floating_point()}
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


class _Group:
    """Cases that are evaluated together."""

    def __init__(self, program: Program, cases: Sequence[Case], seed: int) -> None:
        self._program, self._seed = program, seed
        self._decisions = decisions(program)
        self._compared = {str(n.target) for one in self._decisions for n in one.deciding if n.op == "get_attr"}
        self._kept_inputs = exact_inputs(self._decisions)
        self._known = [_Known(case, Margins(program, self._decisions)) for case in cases]

    def evidence(self) -> Iterator[CaseEvidence | str]:
        """In the order of the cases: evidence, or why a case is skipped."""
        self._run_original()
        running = [known for known in self._known if known.problem is None]
        for copy in range(max((known.copies for known in running), default=0)):
            self._run_copy([known for known in running if known.copies > copy], copy)
        self._run_turned(running)
        for known in self._known:
            yield known.problem if known.problem is not None else known.evidence()

    def _run_original(self) -> None:
        cases = [known.case for known in self._known]
        originals = run_cases(self._program, cases, observe=[known.margins.original.observe for known in self._known])
        running = [k for k, o in zip(self._known, originals, strict=True) if k.take_original(o)]
        oracles = run_cases(
            self._program, [k.case for k in running], raised=True, observe=[k.margins.oracle.observe for k in running]
        )
        for known, oracle in zip(running, oracles, strict=True):
            known.take_oracle(oracle)

    def _run_copy(self, running: Sequence["_Known"], copy: int) -> None:
        watches = [Watch(self._decisions) for _ in running]
        found = run_cases(
            self._program,
            [_moved(known.case, copy, self._seed, self._kept_inputs) for known in running],
            read=self._moved_reader(copy),
            observe=[watch.observe for watch in watches],
        )
        for known, outputs, watch in zip(running, found, watches, strict=True):
            if not isinstance(outputs, Exception):
                known.take_copy(outputs, watch)

    def _run_turned(self, running: Sequence["_Known"]) -> None:
        """The oracle with its undecided decisions taken the other way."""
        turns = [known.turns() for known in running]
        wavering = [(known, turn) for known, turn in zip(running, turns, strict=True) if turn]
        if not wavering:
            return
        cases, overrides = [known.case for known, _ in wavering], [turn for _, turn in wavering]
        found = run_cases(self._program, cases, raised=True, overrides=overrides)
        for (known, _), outputs in zip(wavering, found, strict=True):
            known.take_turned(outputs)

    def _moved_reader(self, copy: int) -> Callable[[str], Tensor]:
        """Bounds that a decision reads stay: beside a number that equals them, an ulp decides, and nobody rounds."""
        moved = moved_reader(self._program, copy, self._seed)
        return lambda name: self._program.tensors[name] if name in self._compared else moved(name)


@dataclass(slots=True)
class _Known:
    """What is known of one case so far."""

    case: Case
    margins: Margins
    problem: str | None = None
    copies: int = 0
    _outputs: dict[str, OutputEvidence] = field(default_factory=dict)
    _originals: Outputs = field(default_factory=dict)

    def take_original(self, outputs: Outputs | Exception) -> bool:
        """False when the original does not run the case."""
        if isinstance(outputs, Exception):
            self.problem = f"{self.case.label}: the original does not run: {first_line(outputs)}"
            return False
        self._originals = outputs
        self.copies = max(map(copies_for, outputs.values()), default=0)
        return True

    def take_oracle(self, outputs: Outputs | Exception) -> None:
        if isinstance(outputs, Exception):
            self.problem = f"{self.case.label}: the float64 oracle does not run: {first_line(outputs)}"
        elif any(outputs[name].shape != value.shape for name, value in self._originals.items()):
            self.problem = f"{self.case.label}: a size that depends on data is another one in float64"
        else:
            self._outputs = {n: scattered(outputs[n], value, ()) for n, value in self._originals.items()}
            self.margins.widen(self.margins.original)

    def take_copy(self, outputs: Outputs, watch: Watch) -> None:
        for name, known in self._outputs.items():
            self._outputs[name] = widened(known, outputs[name])
        self.margins.widen(watch)

    def take_turned(self, outputs: Outputs | Exception) -> None:
        if isinstance(outputs, Exception):
            reason = f"a decision that rounding may turn leads out of what the model runs: {first_line(outputs)}"
            self.problem = f"{self.case.label}: {reason}"
            return
        for name, known in self._outputs.items():
            self._outputs[name] = unsettled(known, outputs[name])

    def turns(self) -> dict[str, Turn]:
        """How undecided decisions fall the other way; values that the case itself gives are no decisions."""
        return {name: turn for name, turn in self.margins.turns().items() if name not in self.case.overrides}

    def evidence(self) -> CaseEvidence:
        return CaseEvidence(self.case, self._outputs)


def _moved(case: Case, copy: int, seed: int, kept: frozenset[str]) -> Case:
    moved = moved_case(case, copy, seed)
    inputs = {n: case.inputs[n] if n in kept else _exact_kept(case.inputs[n], t) for n, t in moved.inputs.items()}
    return replace(moved, inputs=inputs)


def _exact_kept(value: Tensor, moved: Tensor) -> Tensor:
    """An ulp beside the 1 of a mask, or beside a tie, decides otherwise, and is a number that no caller gives."""
    if not value.is_floating_point():
        return moved
    steps = value / _EXACT_STEP.get(value.dtype, _EXACT_STEP_OF_OTHERS)
    is_exact = (value.abs() <= _LARGEST_EXACT) & (steps == steps.round())
    return torch.where(is_exact, value, moved)
