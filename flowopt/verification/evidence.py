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
from flowopt.verification.running import Outputs, first_line, moved_case, moved_reader, run_cases

# A value that moves by less than this many units of roundoff of its row, when a decision falls the other way, is not
# decided by it.
_UNMOVED = 16.0
# Multiples of 1/2 up to here are exact in every format: masks, counts, pixels and ties, not measured numbers.
_LARGEST_EXACT = 256.0


@dataclass(frozen=True, slots=True)
class OutputEvidence:
    """One output in one case. Complex values stand as pairs of reals in ``own_error``.

    Attributes:
        oracle: the float64 oracle's value (integers and booleans as the original gives them).
        original: the original's own value.
        own_error: |original - oracle|, the largest over the original and its one-ulp ensemble, per element; zero
            where the oracle or the original is not finite. None for integers and booleans.
        undecided: where a decision that rounding may turn either way changes the element, and for integers and
            booleans also where the oracle or the ensemble decides otherwise than the original; None: nowhere.
        reach: how far such a decision moves the oracle, per element; zero where none does, and infinite where the
            other way is not finite. None for integers and booleans, and where nothing is undecided.
    """

    oracle: Tensor
    original: Tensor
    own_error: Tensor | None
    undecided: Tensor | None = None
    reach: Tensor | None = None


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
            self._outputs[name] = _unsettled(known, outputs[name])

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
    is_exact = (value.abs() <= _LARGEST_EXACT) & (value * 2 == (value * 2).round())
    return torch.where(is_exact, value, moved)


def scattered(oracle: Tensor, original: Tensor, moved: Iterable[Tensor]) -> OutputEvidence:
    """Evidence of one value out of the oracle, the original and its ensemble."""
    own = own_error(oracle, original)
    known = OutputEvidence(oracle, original, own, oracle != original if own is None else None)
    for value in moved:
        known = widened(known, value)
    return known


def widened(known: OutputEvidence, moved: Tensor) -> OutputEvidence:
    """Evidence with one more copy of the ensemble."""
    original = known.original
    if moved.shape != original.shape:
        return known  # a size that depends on data
    if known.own_error is None:
        undecided = moved != original
        undecided = undecided if known.undecided is None else known.undecided | undecided
        return OutputEvidence(known.oracle, original, None, undecided)
    own = torch.maximum(known.own_error, distance(known.oracle, moved, original))
    return OutputEvidence(known.oracle, original, own, known.undecided)


def _unsettled(known: OutputEvidence, other: Tensor) -> OutputEvidence:
    """Evidence with the oracle whose undecided decisions fell the other way."""
    if other.shape != known.oracle.shape:
        undecided = torch.ones_like(as_real(known.oracle), dtype=torch.bool)
        own = None if known.own_error is None else torch.zeros_like(known.own_error)
        return OutputEvidence(known.oracle, known.original, own, undecided)
    if known.own_error is None:
        moved = other != known.oracle
        undecided = moved if known.undecided is None else known.undecided | moved
        return OutputEvidence(known.oracle, known.original, None, undecided)
    oracle = as_real(known.oracle)
    size = torch.where(torch.isfinite(oracle), oracle.abs(), 0.0)
    scale = size.amax(-1, keepdim=True) if size.dim() and size.numel() else size
    roundoff = torch.finfo(known.original.dtype).eps / 2
    moved = distance(oracle, as_real(other), oracle) > _UNMOVED * roundoff * scale
    moved |= torch.isfinite(oracle) != torch.isfinite(as_real(other))
    same = torch.isfinite(oracle) == torch.isfinite(as_real(other))
    reach = torch.where(moved, torch.where(same, distance(oracle, as_real(other), oracle), torch.inf), 0.0)
    return OutputEvidence(known.oracle, known.original, torch.where(moved, 0.0, known.own_error), moved, reach)


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
