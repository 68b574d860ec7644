"""Factories for ``flowopt sampler``: small networks with random weights, in every shape that its options are for."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.sampling.networks import CHANNELS, LABELS, SIZE, Averaged, Labelled, Timed
from tests.zoo.randomise import randomise

BATCH = 3


class Guessed(Timed):
    """Names that say nothing: only the order tells."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]  # other names, one more
        return super().forward(a, b) * c


class Pair(Timed):
    """Two outputs."""

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # one output more
        y = super().forward(x, t)
        return y, y.mean(dim=(2, 3))


def timed() -> dict[str, Any]:
    return _made(Timed(), "x", "t")


def labelled() -> dict[str, Any]:
    made = _made(Labelled(), "x", "t")
    made["kwargs"]["label"] = torch.arange(BATCH) % (LABELS - 1)
    return _free(made)


def averaged() -> dict[str, Any]:
    made = _made(Averaged(), "x", "t")
    made["kwargs"]["h"] = torch.full((BATCH,), 0.25)
    return _free(made)


def guessed() -> dict[str, Any]:
    made = _made(Guessed(), "a", "b")
    made["kwargs"]["c"] = torch.ones(BATCH, CHANNELS, SIZE, SIZE)
    return _free(made)


def pair() -> dict[str, Any]:
    return _made(Pair(), "x", "t")


def broken() -> None:
    raise AssertionError("loaded before the command line was understood")


def _made(module: nn.Module, sample: str, time: str) -> dict[str, Any]:
    randomise(module, 5)
    kwargs = {sample: torch.randn(BATCH, CHANNELS, SIZE, SIZE), time: torch.full((BATCH,), 0.5)}
    return _free({"module": module.eval(), "kwargs": kwargs, "dims": {"batch": (1, 16)}})


def _free(made: dict[str, Any]) -> dict[str, Any]:
    return {**made, "dynamic": {name: {0: "batch"} for name in made["kwargs"]}}
