"""Where a recovery stands: everything that it needs to go on as if it had never stopped."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowopt.recovery.checkpoint import Checkpoint
from flowopt.recovery.trainable import Trainable, device_of

_STUDENT, _BEST, _OPTIMIZER, _RANDOM = "student/", "best/", "optimizer/", "random/"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses at one point: ``training`` is the mean since the last one (None at the start), ``held_out`` in eval mode
    with every norm swapped.
    """

    step: int
    training: float | None
    held_out: float


@dataclass(slots=True)
class RunState:
    """Counters and losses of a recovery.

    Attributes:
        step: how many were trained.
        epoch: of the next batch.
        taken: batches of that epoch that were used.
        seconds: that it took so far, over all its runs.
        losses: of training since the last evaluation.
        last: the newest training losses with every norm swapped.
        history: evaluations so far, the first before any training.
        best_step: of the best evaluation.
        best: the student's state then.
        stale: evaluations since then, with every norm swapped in training, too.
    """

    step: int = 0
    epoch: int = 0
    taken: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    history: list[Evaluation] = field(default_factory=list)
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0

    @property
    def best_loss(self) -> float:
        """Held-out loss of the best state."""
        return next(e.held_out for e in self.history if e.step == self.best_step)


def checkpoint_of(
    student: Trainable, optimizer: torch.optim.Optimizer, state: RunState, identity: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint of a recovery between two steps."""
    tensors = {_STUDENT + name: tensor for name, tensor in student.state_dict().items()}
    tensors |= {_BEST + name: tensor for name, tensor in state.best.items()}
    tensors |= {_RANDOM + name: tensor for name, tensor in _random_states(student).items()}
    packed = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in packed["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    counters = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in ("best", "history")}
    facts = {
        "identity": dict(identity),
        "state": counters,
        "history": [dataclasses.asdict(evaluation) for evaluation in state.history],
        "optimizer": {"groups": packed["param_groups"], "numbers": numbers},
    }
    return Checkpoint(tensors, facts)


def restore(checkpoint: Checkpoint, student: Trainable, optimizer: torch.optim.Optimizer) -> RunState:
    """Put a student, an optimizer and torch's random numbers where they were.

    Args:
        checkpoint: of a student and an optimizer of the same structure.
        student: its parameters and statistics are overwritten.
        optimizer: its state is replaced.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: the checkpoint holds something else.
    """
    student.load_state_dict(_part(checkpoint, _STUDENT))
    numbers = checkpoint.facts["optimizer"]["numbers"]
    packed: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers.items()}
    for name, tensor in _part(checkpoint, _OPTIMIZER).items():
        index, _, key = name.partition("/")
        packed.setdefault(int(index), {})[key] = tensor
    groups = [{key: _as_tuple(value) if key == "betas" else value for key, value in group.items()}
              for group in checkpoint.facts["optimizer"]["groups"]]  # fmt: skip
    optimizer.load_state_dict({"state": packed, "param_groups": groups})
    _set_random_states(student, _part(checkpoint, _RANDOM))
    state = RunState(**checkpoint.facts["state"])
    state.history = [Evaluation(**evaluation) for evaluation in checkpoint.facts["history"]]
    state.best = _part(checkpoint, _BEST)
    _require_kinds(state, student)
    return state


def snapshot(student: Trainable) -> dict[str, Tensor]:
    """A copy of the student's state that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}


def _require_kinds(state: RunState, student: Trainable) -> None:
    fresh = RunState()
    for one in dataclasses.fields(state):
        value, wanted = getattr(state, one.name), type(getattr(fresh, one.name))
        if not isinstance(value, wanted):
            raise TypeError(f"{one.name} is {type(value).__name__}, not {wanted.__name__}")
    if state.best_step not in {evaluation.step for evaluation in state.history}:
        raise ValueError(f"the best step {state.best_step} was not evaluated")
    if state.best.keys() != student.state_dict().keys():
        raise KeyError("the best state has other tensors than the student")


def _random_states(student: Trainable) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    device = device_of(student)
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _set_random_states(student: Trainable, states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    device = device_of(student)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _part(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    found = checkpoint.tensors.items()
    return {name.removeprefix(prefix): tensor for name, tensor in found if name.startswith(prefix)}


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value)
