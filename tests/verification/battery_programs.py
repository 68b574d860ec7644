"""Small programs for the battery, and its cases on them."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.battery import full_cases
from flowopt.verification.inputs.case import Case

SPECIAL = ("nan", "infinity", "negative-infinity", "spikes")


class Applied(nn.Module):
    """A function of its inputs as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Text(nn.Module):
    """Ids and a mask to features."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4, padding_idx=7)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = (1.0 - mask.to(torch.float32)).unsqueeze(-1) * -100.0
        return torch.softmax(self.table(ids) + hidden, 1)


class Pair(nn.Module):
    """Two feature inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


Dims = tuple[tuple[str, tuple[int, int | None]], ...]
DIMS: Dims = (("batch", (1, 9)), ("sequence", (2, 64)))


@cache
def text() -> Program:
    ids, mask = torch.zeros(4, 6, dtype=torch.int64), torch.ones(4, 6, dtype=torch.int64)
    axes = {0: "batch", 1: "sequence"}
    return capture(Text().eval(), (ids, mask), dynamic={"ids": axes, "mask": axes}, dims=dict(DIMS))


@cache
def features(dims: Dims = DIMS, traced: int = 4) -> Program:
    """Floats with two free dimensions, the second traced at 6."""
    x = torch.zeros(traced, 6, 5)
    return capture(Applied(torch.tanh).eval(), (x,), dynamic={"x": {0: "batch", 1: "sequence"}}, dims=dict(dims))


@cache
def fixed() -> Program:
    return capture(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),))


def by_name(program: Program, seed: int = 0) -> dict[str, Case]:
    return {case.name: case for case in full_cases(program, seed)}


@cache
def battery() -> dict[str, Case]:
    return by_name(features(), 0)


def equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
