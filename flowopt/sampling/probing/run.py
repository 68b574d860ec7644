"""One run of a scheduler's own loop on given tensors."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from flowopt.errors import FlowoptError, UserError
from flowopt.sampling.probing.columns import Draws
from flowopt.sampling.probing.schedule import Begun


@final
@dataclass(frozen=True, slots=True)
class Run:
    """What the network was given at each evaluation and, last, the sample; and how often noise was drawn."""

    rows: tuple[Tensor, ...]
    draws: int


def run(
    begun: Begun,
    start: Tensor,
    output: Callable[[int], Tensor],
    noise: Callable[[int], Tensor],
    *,
    keeps_double: bool,
) -> Run:
    """Run the loop of a pipeline: scale the input, take the network's output, step.

    Args:
        start: the initial noise; the scheduler's ``init_noise_sigma`` scales it, as pipelines do.
        output: what the network gives at evaluation j.
        noise: what the scheduler draws at its k-th call.

    Raises:
        UserError: a step fails.
    """
    own = begun.copied()
    scheduler: Any = own.scheduler
    options = dict(own.step_options)
    if "return_dict" in inspect.signature(scheduler.step).parameters:
        options["return_dict"] = False
    scaled = getattr(scheduler, "scale_model_input", None)
    rows: list[Tensor] = []
    with torch.no_grad(), Draws(noise, keeps_double=keeps_double) as draws:
        try:
            sample = start * getattr(scheduler, "init_noise_sigma", 1.0)
            for j, time in enumerate(scheduler.timesteps):
                # Clones: a scheduler may write into what it gets.
                rows.append(sample.clone() if scaled is None else scaled(sample, time).clone())
                sample = _sample(scheduler.step(output(j).clone(), time, sample, **options))
        except FlowoptError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{type(scheduler).__name__}.step fails at evaluation {len(rows) - 1}: {reason}",
                why=_reason(scheduler),
            ) from error
    return Run((*rows, sample.clone()), draws.count)


def _sample(stepped: Any) -> Tensor:
    """A step returns a tuple whose first entry is the sample, an object that has it, or the sample."""
    found = getattr(stepped, "prev_sample", stepped)
    found = found[0] if isinstance(found, (tuple, list)) else found
    if not isinstance(found, Tensor):
        raise UserError(f"step returns {type(stepped).__name__}, in which no sample can be found")
    return found


def _reason(scheduler: Any) -> str:
    variance = getattr(getattr(scheduler, "config", None), "variance_type", None)
    if variance in ("learned", "learned_range"):
        return f"variance_type={variance!r}: the network gives a variance, which the step does not use linearly"
    return ""
