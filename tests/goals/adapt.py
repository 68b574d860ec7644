"""Row of recovery: a run that was killed and resumed, and one that two processes share."""

import signal
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tests.goals.row import Measured, Row
from tests.recovery.tiny_processes import run_alone, run_together, run_until_killed

# Every norm swapped for a published one, half of them after the other half.
SETTINGS = ('dtype="float32"', 'leaves="published"', 'schedule="one-at-a-time"', "swap_share=0.5", "steps=24")
_KILLED_AFTER = 14
_LARGEST = 1e-5


def _differing(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name in wanted if name not in found or not torch.equal(wanted[name], found[name]))


def _distance(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Largest difference of any entry, relative where entries are larger than 1."""
    return max(float(((found[n] - t).abs() / t.abs().clamp_min(1)).max()) for n, t in wanted.items())


def _resume() -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = run_alone(folder / "whole.safetensors", *SETTINGS)
        status = run_until_killed(folder / "run.safetensors", _KILLED_AFTER, *SETTINGS)
        resumed = run_alone(
            folder / "resumed.safetensors", *SETTINGS, checkpoint=folder / "run.safetensors", resume=True
        )
        together = run_together(folder / "together.safetensors", *SETTINGS)
    short = tuple(f"{name} differs after resuming" for name in _differing(whole, resumed))
    losses = whole["history"]
    if status != -signal.SIGKILL or losses.min() >= losses[0]:
        short += (f"the run ended with {status} before it was killed, or learned nothing: {losses.tolist()}",)
    distance = _distance(whole, together)
    value = f"{len(whole) - len(_differing(whole, resumed))} of {len(whole)} tensors equal; 2 processes: {distance:.1e}"
    return Measured(value, not short and distance <= _LARGEST, short)


ROWS = (
    Row("adapt.resume", "killed = uninterrupted; 1 process = 2 within 1e-5", _resume, is_long=True),
)  # fmt: skip
