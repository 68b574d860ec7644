"""A small classifier of random features with batch norms, and data of another brightness and contrast."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.passes.programs import Written, canonical, normal, randomised


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of noise with a bright patch, and the quarter that it is in."""
    x = normal(count, 1, 8, 8, dtype=torch.float64, seed=seed)
    labels = torch.arange(count) % 4
    for image, label in zip(x, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[0, row : row + 4, column : column + 4] += 2.0
    return x, labels


def shifted(x: Tensor) -> Tensor:
    return 0.25 * x + 3.0


def _forward(m: Any, x: Tensor) -> Tensor:
    x = m.norms[0](m.convs[0](x)).relu()
    x = m.norms[1](m.convs[1](x)).relu()
    out: Tensor = m.head(x.flatten(1))
    return out


@cache
def classifier() -> Program:
    """``trained``, captured for any number of images, with one spelling of its norms."""
    free, ranges = {"x": {0: "batch"}}, {"batch": (1, None)}
    return canonical(capture(trained(), (images(3, 1)[0],), dynamic=free, dims=ranges))


def trained() -> nn.Module:
    """Trained on ``images``: the statistics by running, the head by least squares."""
    module = randomised(
        Written(
            _forward,
            convs=nn.ModuleList([nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3)]),
            norms=nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)]),
            head=nn.Linear(96, 4),
        )
    ).double()
    x, labels = images(256, 1)
    for norm in module.norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    with torch.no_grad():
        for _ in range(2):
            module(x)
        module.eval()
        features: list[Tensor] = []
        hook = module.head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        module(x)
        hook.remove()
        rows = torch.cat([features[0], torch.ones(len(x), 1, dtype=torch.float64)], 1)
        wanted = nn.functional.one_hot(labels, 4).double()
        solved = torch.linalg.solve(rows.T @ rows + torch.eye(97, dtype=torch.float64), rows.T @ wanted)
        module.head.weight.copy_(solved[:-1].T)
        module.head.bias.copy_(solved[-1])
    return module


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
