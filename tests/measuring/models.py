"""Small models to measure, and what else a worker may meet."""

import os
import time
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.models import randomise


class Tiny(nn.Module):
    """Ids and a mask, as a text model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        kept = self.table(ids) * mask.unsqueeze(-1)
        scores: Tensor = self.second(self.first(kept).relu()) * scale
        return scores


def tiny() -> dict[str, Any]:
    module = Tiny()
    randomise(module, 0)
    axes = {0: "batch", 1: "sequence"}
    return {
        "module": module.eval(),
        "kwargs": {"ids": torch.arange(10).reshape(2, 5), "mask": torch.ones(2, 5, dtype=torch.int64), "scale": 2.0},
        "dynamic": {"ids": axes, "mask": axes},
        "dims": {"batch": (1, 8), "sequence": (2, 64)},
    }


class _Acting(Tiny):
    """Does something else once it was called so often."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        self.left -= 1
        if self.left < 0:
            self.act()
        return super().forward(ids, mask, scale)

    def act(self) -> None:
        raise ValueError("this model does not run\nand says more")


class _Leaving(_Acting):
    def act(self) -> None:
        os._exit(7)


class _Hanging(_Acting):
    def act(self) -> None:
        time.sleep(60)


def _made(module: nn.Module) -> dict[str, Any]:
    randomise(module, 0)
    return tiny() | {"module": module.eval()}


def failing() -> dict[str, Any]:
    return _made(_Acting(0))


def leaving_at_once() -> dict[str, Any]:
    return _made(_Leaving(0))


def leaving_later() -> dict[str, Any]:
    return _made(_Leaving(2))


def hanging() -> dict[str, Any]:
    return _made(_Hanging(2))


def other() -> dict[str, Any]:
    """Another function of the same inputs."""
    made = tiny()
    made["kwargs"]["scale"] = -3.0
    return made


class Stateful(nn.Module):
    """A buffer that every call changes."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.full((3,), 4.0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1.0)
        return x + self.seen


def stateful() -> dict[str, Any]:
    return {"module": Stateful().eval(), "args": (torch.ones(3),)}
