"""Factories for command lines: small models with random weights, and code that fails in every way."""

import errno
import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.models import randomise


class Folding(nn.Module):
    """One batch norm and one layer norm, both of which fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, kernel_size=2)
        self.batch_norm = nn.BatchNorm1d(8)
        self.layer_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, signal: Tensor) -> Tensor:
        features = self.batch_norm(self.stem(signal)).relu().transpose(1, 2)
        logits: Tensor = self.head(self.layer_norm(features))
        return logits


class PostNorm(nn.Module):
    """Two layer norms that are added to: neither folds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LayerNorm(6)
        self.second = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        sum_of_both: Tensor = x + self.second(x)
        return sum_of_both


class Random(nn.Module):
    """No two runs agree."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def folding(seed: int = 1) -> dict[str, Any]:
    module = Folding()
    randomise(module, seed)
    return {
        "module": module.eval(),
        "args": (torch.randn(3, 3, 6, generator=torch.Generator().manual_seed(seed)),),
        "dynamic": {"signal": {0: "batch"}},
        "dims": {"batch": (1, 64)},
    }


def other_weights() -> dict[str, Any]:
    return folding(seed=2)


def in_train_mode() -> dict[str, Any]:
    made = folding()
    made["module"].train()
    return made


def talking() -> dict[str, Any]:
    print("a line that the model's own code prints")
    return folding()


def post_norm() -> tuple[nn.Module, tuple[Tensor]]:
    module = PostNorm()
    randomise(module, seed=3)
    return module.eval(), (torch.randn(4, 6, generator=torch.Generator().manual_seed(3)),)


def without_norms() -> tuple[nn.Module, tuple[Tensor]]:
    module = nn.Linear(6, 4)
    randomise(module, seed=4)
    return module.eval(), (torch.randn(2, 6, generator=torch.Generator().manual_seed(4)),)


def random() -> tuple[nn.Module, tuple[Tensor]]:
    return Random().eval(), (torch.ones(2, 6),)


def broken() -> None:
    error = ValueError("the weights are of another model")
    error.add_note("while layer 3 was read")
    raise error


def on_a_full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.bin")


def interrupted() -> None:
    raise KeyboardInterrupt


def leaving() -> None:
    sys.exit(0)


class Summing(nn.Module):
    """The mean of all tokens so far, of projected ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        counts = torch.arange(1, tokens.shape[1] + 1, dtype=tokens.dtype)[:, None]
        means: Tensor = self.last(self.first(tokens).relu().cumsum(1) / counts)
        return means


def summing(seed: int = 1) -> dict[str, Any]:
    module = Summing()
    randomise(module, seed)
    return {
        "module": module.eval(),
        "args": (torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(seed)),),
        "dynamic": {"tokens": {0: "batch", 1: "time"}},
        "dims": {"batch": (1, 64), "time": (1, 64)},
    }
