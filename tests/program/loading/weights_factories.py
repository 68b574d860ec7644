"""What users name with ``factory=`` for a file of weights."""

from typing import Any

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.randomise import randomise

Made = tuple[nn.Module, tuple[Tensor, ...]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(self.first(x)).relu())
        return result


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x).relu())
        return result


def net(seed: int = 1) -> Net:
    made = Net()
    randomise(made, seed)
    return made.eval()


def build() -> Made:
    return net(seed=2), (torch.zeros(5, 3),)


def dynamic() -> dict[str, Any]:
    module, args = build()
    return {"module": module, "args": args, "dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 9)}}


def alone() -> nn.Module:
    return build()[0]


def tied() -> Made:
    module = Tied()
    randomise(module, seed=2)
    return module.eval(), (torch.zeros(5, 3),)


def half() -> Made:
    module, args = build()
    return module.half(), (args[0].half(),)


def other() -> Made:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval(), (torch.zeros(5, 3),)


def wider() -> Made:
    module = net()
    module.last = nn.Linear(4, 7)
    return module.eval(), (torch.zeros(5, 3),)


def on_meta() -> Made:
    with torch.device("meta"):
        return Net().eval(), (torch.zeros(5, 3),)


def program() -> Program:
    return capture(*build())
