"""What is on record of a sampler's loop: what it is, and how far its file is from the network in a plain loop."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoopCase:
    """One sample batch, through the file and through the network itself.

    Errors are largest differences relative to the largest number of what was expected.

    Attributes:
        case: name and sizes.
        fold_error: of the folded program in float64, against the network in float64 in a plain loop.
        error: of the file, against the same.
        own_error: of the network in its own precision in a plain loop, against the same.
        amplification: how much a small change of the noise grows until the end: 1e-6 of it per step is not visible.
        allowed: the largest error that passes.
        step_errors: per step, of the file's step where it gets the exact state.
        step_own_errors: of the network in its own precision, likewise.
        reference_error: of the file, against the loop that the caller gave; None where there was none.
    """

    case: str
    fold_error: float
    error: float
    own_error: float
    amplification: float
    allowed: float
    step_errors: tuple[float, ...] = ()
    step_own_errors: tuple[float, ...] = ()
    reference_error: float | None = None

    @property
    def step_error(self) -> float:
        """The worst of all steps."""
        return max(self.step_errors, default=0.0)


@dataclass(frozen=True, slots=True)
class LoopRecord:
    """The loop of a folded sampler.

    Attributes:
        sampler: its name.
        evaluations: how often the network runs.
        state: how many tensors of the sample's shape are carried.
        draws: how many noise tensors are given beside the first.
        form: how the file writes the loop.
        table_bytes: of everything that was computed from the times beforehand.
        removed_bytes: of the network's weights that are not needed any more.
        notes: of the sampler.
        cases: what verification saw; empty where it is off.
    """

    sampler: str
    evaluations: int
    state: int
    draws: int
    form: str
    table_bytes: int
    removed_bytes: int
    notes: tuple[str, ...] = ()
    cases: tuple[LoopCase, ...] = ()
