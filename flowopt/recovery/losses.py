"""How far a student is from its teacher: differentiable means over vectors that are no padding.

What a sum is divided by is averaged over the processes that train together (``flowopt.recovery.distributed``).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from flowopt.recovery.distributed import mean_over_ranks
from flowopt.recovery.padding import padding_of

# (student, teacher, padding (batch, tokens) or None) to a number.
Distance = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def divergence(temperature: float = 1.0) -> Distance:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` along the last axis, mean over vectors.

    The square keeps the size of gradients where the temperature changes.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """

    def distance(student: Tensor, teacher: Tensor, masked: Tensor | None) -> Tensor:
        found = functional.log_softmax(_wide(student) / temperature, -1)
        wanted = functional.log_softmax(_wide(teacher) / temperature, -1)
        return _mean((wanted.exp() * (wanted - found)).sum(-1), masked) * temperature**2

    return distance


def relative_error(student: Tensor, teacher: Tensor, masked: Tensor | None = None) -> Tensor:
    """``sum (student - teacher)^2 / sum teacher^2``: 0 is equal, 1 is a student that says nothing."""
    wanted = _wide(teacher)
    off = (_wide(student) - wanted).square().sum(-1)
    scale = wanted.square().sum(-1)
    real = _real(off, masked)
    total = mean_over_ranks((scale * real).sum())
    return (off * real).sum() / total.clamp_min(torch.finfo(total.dtype).tiny)


def cosine_distance(student: Tensor, teacher: Tensor, masked: Tensor | None = None) -> Tensor:
    """``1 - cos`` of the angle along the last axis, mean over vectors."""
    return _mean(1 - functional.cosine_similarity(_wide(student), _wide(teacher), dim=-1), masked)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _real(vectors: Tensor, masked: Tensor | None) -> Tensor:
    """1 for each vector that is no padding, in the dtype of ``vectors``, which has one number for each vector."""
    padding = padding_of(vectors.unsqueeze(-1), masked)
    return torch.ones_like(vectors) if padding is None else (~padding).to(vectors.dtype)


def _mean(vectors: Tensor, masked: Tensor | None) -> Tensor:
    real = _real(vectors, masked)
    return (vectors * real).sum() / mean_over_ranks(real.sum()).clamp_min(1)
