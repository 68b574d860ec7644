"""Small models whose lowering has something to go wrong, captured."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.randomise import randomise


class Nested(nn.Module):
    """Dotted names, an output that is an input, one value twice, a stored tensor returned, an unused input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.table = nn.Parameter(torch.zeros(40, 10))

    def forward(self, x: Tensor, spare: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"hidden": y, "parts": (y.relu(), {"again": y}), "same": x, "table": self.table}


class Counter(nn.Module):
    """State: a large buffer (external default) and a small one (inline default)."""

    total: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(300))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.linear = nn.Linear(300, 300)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.total.add_(x.sum(0))
        return self.linear(x) + self.total


class Tied(nn.Module):
    """An embedding whose table is also the output layer: read straight and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(ids)
        return self.head(hidden.tanh())


class Convolutions(nn.Module):
    """Batch norm must survive: folding it is a pass's job."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.pool(self.norm(self.conv(image)).relu()).flatten(1))


class Attention(nn.Module):
    """Two free dimensions, views of both, and weights that are stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, 32))


def program(
    module: nn.Module,
    *args: Tensor,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    dims: Mapping[str, tuple[int, int | None]] | None = None,
) -> Program:
    """The module with random parameters, captured."""
    randomise(module, seed=3)
    return capture(module.eval(), args, dynamic=dynamic, dims=dims)


def nested() -> Program:
    x, spare = torch.randn(3, 6), torch.randn(2)
    return program(Nested(), x, spare, dynamic={"x": {0: "batch"}}, dims={"batch": (1, 64)})


def counter() -> Program:
    return program(Counter(), torch.randn(3, 300), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 64)})


def tied() -> Program:
    return program(Tied(), torch.arange(6).view(2, 3), dynamic={"ids": {0: "batch", 1: "length"}})


def convolutions() -> Program:
    return program(Convolutions(), torch.randn(2, 3, 8, 8), dynamic={"image": {0: "batch"}})


def attention() -> Program:
    return program(Attention(), torch.randn(3, 5, 32), dynamic={"x": {0: "batch", 1: "length"}})
