"""The optimizers of a recovery, and the learning rate of every step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flowopt.errors import MissingDependency
from flowopt.recovery.settings import OptimizerName, RecoverySettings
from flowopt.recovery.trainable import Trainable

_BETAS = (0.9, 0.999)
_MOMENTUM = 0.9


def optimizer_of(student: Trainable, settings: RecoverySettings) -> torch.optim.Optimizer:
    """The optimizer of a student's parameters. Matrices decay, vectors do not; every leaf has a group of its own.

    Raises:
        MissingDependency: AdamP or SGDP without the package that has them.
    """
    weights = [parameter for parameter in student.tensors.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
        *(
            {"params": [p for p in leaf.parameters() if p.requires_grad], "weight_decay": 0.0}
            for leaf in student.leaves.values()
        ),
    ]
    return _made(settings.optimizer, [group for group in groups if group["params"]], settings.learning_rate)


def require_optimizer(name: OptimizerName) -> None:
    """Refuse an optimizer whose package is not there.

    Raises:
        MissingDependency: AdamP or SGDP without the package that has them.
    """
    if name != "adamw":
        _optimizers(name)


def step_of(optimizer: torch.optim.Optimizer) -> None:
    """One update of everything that has a gradient.

    Leaves that are not yet in place have none. AdamP counts steps by group, and would take the first one of a late leaf
    for one of many: its two moments would be corrected for a past that they do not have, and the update several times
    too large. A group without gradients has therefore made no step.
    """
    optimizer.step()
    for group in optimizer.param_groups:
        if "step" in group and all(parameter.grad is None for parameter in group["params"]):
            group["step"] = 0


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float) -> float:
    """Scale all gradients together so that their norm is at most ``largest`` (0: any); what it was."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest > 0:
        torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], largest, norm)
    return float(norm)


def learning_rate(settings: RecoverySettings, step: int) -> float:
    """Of a step, counted from 0: a straight rise, then half a cosine down to the final share."""
    rising = math.ceil(settings.warmup * settings.steps)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    along = (step - rising) / max(settings.steps - rising, 1)
    low = settings.final_learning_rate
    return settings.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * along)) / 2)


def _made(name: OptimizerName, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=_BETAS, foreach=False)
    adamp, sgdp = _optimizers(name)
    if name == "adamp":
        return adamp(groups, lr=rate, betas=_BETAS)
    return sgdp(groups, lr=rate, momentum=_MOMENTUM, nesterov=True)


def _optimizers(name: str) -> tuple[Callable[..., torch.optim.Optimizer], Callable[..., torch.optim.Optimizer]]:
    try:
        from pytorch_optimizer import SGDP, AdamP
    except ImportError as error:
        raise MissingDependency(
            f"{name} comes from the package pytorch_optimizer, which is not installed",
            hint="pip install 'flowopt[recovery]'\nor the optimizer adamw, which needs nothing",
        ) from error
    return AdamP, SGDP
