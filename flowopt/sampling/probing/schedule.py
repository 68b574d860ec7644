"""A copy of a scheduler at the beginning of its schedule, and which options go to which of its methods."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from flowopt.errors import UserError

_METHODS = ("set_timesteps", "step")
_POSITIONAL = 3
_NEEDED = (
    "probing calls set_timesteps(steps), then step(output, timestep, sample) for each of its timesteps, and "
    "scale_model_input(sample, timestep) and init_noise_sigma where they exist"
)
# What the probing itself passes, and noise, which is an input of the folded sampler.
_GIVEN = frozenset({"sample", "model_output", "timestep", "return_dict", "device", "num_inference_steps"})
_NOISE = frozenset({"generator", "variance_noise"})


class Scheduler(Protocol):
    """What probing needs of a scheduler; ``scale_model_input`` and ``init_noise_sigma`` are used where they exist."""

    timesteps: Tensor

    def set_timesteps(self, *args: Any, **options: Any) -> None: ...

    def step(self, *args: Any, **options: Any) -> Any: ...


@final
@dataclass(frozen=True, slots=True)
class Begun:
    """A copy of the caller's scheduler that has a schedule and has not stepped yet, and the options of its steps."""

    scheduler: Scheduler
    step_options: Mapping[str, object]

    def copied(self) -> "Begun":
        """For one run: a run changes the scheduler."""
        return Begun(copy.deepcopy(self.scheduler), self.step_options)


def begun(scheduler: object, steps: int | None, options: Mapping[str, object]) -> Begun:
    """Copy the scheduler and set its schedule as pipelines do.

    Raises:
        UserError: not a scheduler, options that it does not take or lacks, or no schedule.
    """
    name = type(scheduler).__name__
    _require_methods(scheduler)
    if steps is not None and steps < 1:
        raise UserError(f"steps={steps}: {name} would not evaluate the network", hint="ask for 1 step or more")
    for_schedule, for_step = _routed(scheduler, options)
    clone = _on_cpu(copy.deepcopy(scheduler))
    lists: dict[str, Any] = {key: for_schedule[key] for key in ("sigmas", "timesteps") if key in for_schedule}
    if steps is None and not lists:
        if for_schedule:
            raise UserError(f"{', '.join(for_schedule)} without a number of steps", hint="pass steps, or sigmas")
        _require_fresh(clone)
        return Begun(clone, for_step)
    for key, values in lists.items():
        if not len(values):
            raise UserError(f"{key} is empty: {name} would not evaluate the network")
        if steps is not None and len(values) != steps:
            raise UserError(f"steps={steps}, and {key} has {len(values)} entries", hint="leave steps out")
    _require_shift(clone, for_schedule)
    try:
        # Pipelines give either the number of steps or a list.
        clone.set_timesteps(*([] if lists else [steps]), **for_schedule)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{name}.set_timesteps fails: {reason}", hint="another number of steps, or other settings"
        ) from error
    if not isinstance(getattr(clone, "timesteps", None), Tensor):
        raise UserError(f"{name} has no tensor of timesteps after set_timesteps", why=_NEEDED)
    return Begun(clone, for_step)


def _require_methods(scheduler: object) -> None:
    name = type(scheduler).__name__
    if isinstance(scheduler, type):
        raise UserError(f"{scheduler.__name__} is a class, and probing needs an object of it")
    missing = [method for method in _METHODS if not callable(getattr(scheduler, method, None))]
    if missing:
        raise UserError(f"{name} is no scheduler: it has no {', '.join(missing)}", why=_NEEDED)
    parameters = inspect.signature(scheduler.step).parameters.values()  # type: ignore[attr-defined]  # checked above
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [name for name in required if name not in _GIVEN] if len(required) > _POSITIONAL else []
    if needed:
        raise UserError(
            f"{name}.step needs {', '.join(needed)}",
            why="a folded sampler makes its step from the network's output, the timestep and the sample alone",
        )


def _routed(scheduler: object, options: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Each option to the method that has a parameter of this name."""
    name = type(scheduler).__name__
    taken = [
        dict.fromkeys(p for p in inspect.signature(getattr(scheduler, m)).parameters if p not in _GIVEN | _NOISE)
        for m in _METHODS
    ]
    for key in options:
        if key in _NOISE:
            raise UserError(f"{key}: noise is an input of the folded sampler", hint="leave it out")
        if key not in taken[0] and key not in taken[1]:
            known = ", ".join(sorted({*taken[0], *taken[1]})) or "none"
            raise UserError(f"{name} does not take {key}; its options: {known}")
    first, second = ({key: value for key, value in options.items() if key in names} for names in taken)
    return first, {key: value for key, value in second.items() if key not in first}


def _require_fresh(scheduler: Any) -> None:
    """It was given a schedule, and has not stepped."""
    name = type(scheduler).__name__
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise UserError(f"{name} has no schedule yet", hint="probe_scheduler(scheduler, steps=28)")
    held = [key for key, value in vars(scheduler).items() if _holds_samples(value)]
    if getattr(scheduler, "step_index", None) is not None or held:
        raise UserError(
            f"{name} has stepped already" + (f": it holds {', '.join(held)}" if held else ""),
            hint="pass steps, so that a copy of it begins anew, or call its set_timesteps first",
        )
    if getattr(scheduler, "begin_index", None):
        raise UserError(f"{name} begins at step {scheduler.begin_index}, and only whole schedules are probed")


def _require_shift(scheduler: Any, given: Mapping[str, object]) -> None:
    config = getattr(scheduler, "config", None)
    takes = "mu" in inspect.signature(scheduler.set_timesteps).parameters
    if takes and getattr(config, "use_dynamic_shifting", False) and "mu" not in given:
        raise UserError(
            f"{type(scheduler).__name__} shifts its schedule by the image's size (use_dynamic_shifting), and mu is "
            "missing",
            hint="pass mu as the pipeline does, such as mu=1.15 for 4096 tokens of FLUX",
        )


def _holds_samples(value: object) -> bool:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(v, Tensor) and v.dim() >= 2 for v in values)


def _on_cpu(scheduler: Any) -> Any:
    """Pipelines move some schedulers' tables to the device of the samples."""
    for key, value in list(vars(scheduler).items()):
        if isinstance(value, Tensor) and value.device != torch.device("cpu"):
            setattr(scheduler, key, value.cpu())
    return scheduler
