"""The mutation score: how many mutants the verifier catches, and why the others may stay."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from flowopt.errors import InternalError
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.pipeline.instrument import PassRun
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.verification.running import first_line, run_case
from flowopt.verification.verify_passes import VerifyPasses
from tests.mutation.excuses import excuse_of
from tests.mutation.mutant import Mutant
from tests.mutation.peers import PEERS, Sample
from tests.mutation.population import population
from tests.mutation.programs import PROGRAMS, program

_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one mutant.

    Attributes:
        program: name of the mutated program.
        kind: of mistake.
        node: where it was made.
        gate: that caught it; empty for a survivor.
        reason: the verifier's first finding.
        is_same: a survivor whose outputs have the original's bits in every case.
        missed_by: the peers that do not see it.
    """

    program: str
    kind: str
    node: str
    gate: str
    reason: str
    is_same: bool = False
    missed_by: tuple[str, ...] = ()

    @property
    def excuse(self) -> str:
        """Why it may survive: it changes nothing that can be seen, and the reason is written down. Else empty."""
        return excuse_of(self.program, self.kind, self.node) if self.is_same and not self.gate else ""

    def __str__(self) -> str:
        state = self.gate or ("equal" if self.is_same else "MISSED")
        return f"{self.program:10} {self.kind:40} {self.node:32} {state:10} {self.reason}"


@dataclass(frozen=True, slots=True)
class Score:
    """All mutants with their fate."""

    judged: tuple[Judged, ...]

    @property
    def caught(self) -> int:
        return sum(bool(j.gate) for j in self.judged)

    @property
    def excused(self) -> tuple[Judged, ...]:
        return tuple(j for j in self.judged if j.excuse)

    @property
    def missed(self) -> tuple[Judged, ...]:
        return tuple(j for j in self.judged if not j.gate and not j.excuse)

    @property
    def kinds(self) -> int:
        return len({j.kind for j in self.judged})

    def by_gate(self) -> Counter[str]:
        """Mutants per gate that caught them."""
        return Counter(j.gate for j in self.judged if j.gate)

    def misses_of_peers(self) -> dict[str, int]:
        """Mutants that each peer misses, excused ones left out."""
        counted = [j for j in self.judged if not j.excuse]
        return {peer: sum(peer in j.missed_by for j in counted) for peer in PEERS}


class _Kept:
    """Keeps the mutated program, which a caught pass does not leave behind."""

    def __init__(self) -> None:
        self.program: Program | None = None

    def start(self, program: Program) -> None:
        """Nothing to prepare."""

    def judge(self, run: PassRun) -> None:
        """No opinion."""
        self.program = run.after

    def keep(self, run: PassRun) -> None:
        """Nothing to remember."""


class Judge:
    """Judges mutants of one program with one verifier, whose knowledge of the original is kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._program = program(name)
        self._verifier = VerifyPasses(level="full", stop_early=True)
        self._sample = Sample(self._program)

    def __call__(self, mutant: Mutant) -> Judged:
        """What becomes of a mutant.

        Raises:
            AssertionError: it changed nothing.
        """
        kept = _Kept()
        try:
            (record,) = run_passes(self._program, [mutant], [kept, self._verifier]).records
        except (InternalError, *RUN_ERRORS) as refused:
            # The edit itself saw that it cannot be right, or its shapes do not fit: no program is left to look at.
            return Judged(self._name, mutant.kind, mutant.node, "refused", first_line(refused))
        assert kept.program is not None, f"{mutant.text()} did not fire"
        mutated = kept.program
        missed_by = self._sample.missed_by(mutated)
        if record.outcome == "reverted":
            assert record.verdict is not None
            first = record.verdict.findings[0]
            return Judged(self._name, mutant.kind, mutant.node, first.gate, record.reason, missed_by=missed_by)
        is_same = self._is_same(mutated)
        return Judged(self._name, mutant.kind, mutant.node, "", "", is_same, missed_by)

    def _is_same(self, mutated: Program) -> bool:
        """True when every output of every case has the original's bits."""
        for known in self._verifier.evidence.cases:
            names = {n.name for n in mutated.graph.nodes}
            if not all(name in names for name in known.case.overrides):
                continue
            wanted, found = run_case(self._program, known.case), run_case(mutated, known.case)
            if not all(_same_bits(wanted[n], found[n]) for n in wanted):
                return False
        return True


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    same = (one == other) & (torch.signbit(one) == torch.signbit(other)) | (torch.isnan(one) & torch.isnan(other))
    return bool(same.all())


def score(kinds: Iterable[str] = (), *, on_judged: Callable[[Judged], None] | None = None) -> Score:
    """Judge all mutants of all programs, or of the given kinds, in two processes.

    Args:
        kinds: names; all when empty.
        on_judged: called with the mutants of a program when it is finished.
    """
    wanted = tuple(kinds)
    found: dict[str, list[Judged]] = {}
    with ProcessPoolExecutor(min(_WORKERS, os.cpu_count() or 1), get_context("spawn")) as pool:
        pending = {name: pool.submit(judged_program, name, wanted) for name in PROGRAMS}
        for name, future in pending.items():
            found[name] = future.result()
            for one in found[name] if on_judged is not None else ():
                on_judged(one)  # type: ignore[misc]  # it is there
    return Score(tuple(one for name in PROGRAMS for one in found[name]))


def judged_program(name: str, kinds: tuple[str, ...]) -> list[Judged]:
    """What becomes of the mutants of one program, on one thread."""
    torch.set_num_threads(1)
    judge = Judge(name)
    return [judge(m) for m in population(name) if not kinds or m.kind in kinds]
