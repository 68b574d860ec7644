"""Small modules with the inputs, outputs and state that captures must get right."""

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Pair = namedtuple("Pair", ["left", "right"])  # untyped on purpose: torch flattens it by its fields


@dataclass
class Scores:
    """An output like those of transformers: some fields stay None."""

    logits: Tensor
    hidden: Tensor | None = None
    loss: Tensor | None = None


torch.export.register_dataclass(Scores)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


class Counter(nn.Module):
    """A call counter and a cache that is filled row by row, as decoders do."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        self.calls: Tensor
        self.cache: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.full((rows, 3), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        self.cache.index_copy_(0, self.calls.reshape(1), x)
        self.calls.add_(1)
        return self.cache.sum(0) * x


class DriftingNorm(nn.Module):
    """A batch norm whose running mean the model itself changes, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        assert self.norm.running_mean is not None
        self.norm.running_mean.add_(1.0)
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + 2 * y
