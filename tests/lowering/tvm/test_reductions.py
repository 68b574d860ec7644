"""Sums, means, extremes and normalisations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lowering.tvm.compare import captured, require_equivalent, require_near, results

pytest.importorskip("tvm")

_X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
_FAR = _X + 100  # the difference of squares would lose five digits of this variance
_TIES = torch.tensor([[1, 3, 3, 0], [2, 2, 2, 2]])

_INFINITE = torch.tensor([[-torch.inf, -torch.inf], [torch.inf, torch.inf], [1.0, torch.nan], [torch.nan, 0.0]])

CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "sums": (lambda x: [x.sum(), x.sum(1), x.sum((0, -1), keepdim=True), x.sum(-1, dtype=torch.float64)], (_X,)),
    "sums of booleans": (lambda x: [(x > 0).sum(), (x > 0).sum(1), (x > 0).float().mean()], (_X,)),
    "sums of int32": (lambda x: [x.int().sum(1), x.int().sum(1, dtype=torch.int32)], (_X * 9,)),
    "means": (
        lambda x: [x.mean(), x.mean(-1), x.mean((1, 2), keepdim=True), x.long().mean(1, dtype=torch.float32)],
        (_X,),
    ),
    "variances": (lambda x: [x.var(-1), x.std(0), x.var(-1, correction=0), *torch.var_mean(x, 1)], (_FAR,)),
    "extremes": (lambda x: [x.amax(1), x.amin((0, 2)), x.max(), x.min(), *x.max(1), *x.min(-1, keepdim=True)], (_X,)),
    "places of ties": (lambda x: [x.argmax(), x.argmax(1), x.argmin(-1, keepdim=True), *x.max(1)], (_TIES,)),
    "infinities": (lambda x: [x.amax(1), x.argmax(1), x.amin(0), *x.min(1), x.argmax()], (_INFINITE,)),
    "any and all": (lambda x: [(x > 1).any(), (x > -1).all(-1), (x > 1).any(1, keepdim=True), x.any(0)], (_X,)),
    "products": (lambda x: [x.prod(), x.prod(1)], (_X[:2, :2],)),
    "norms": (
        lambda x: [x.norm(dim=-1), x.norm(), x.norm(1, 1), x.norm(float("inf"), 0), F.normalize(x, dim=1)],
        (_X,),
    ),
    "logsumexp": (lambda x: [x.logsumexp(-1), x.logsumexp((0, 1), keepdim=True)], (_X * 50,)),
    "layer norm": (
        lambda x, y: [F.layer_norm(x, (6,)), F.layer_norm(x, (6,), y, y * 2), F.layer_norm(x, (4, 6))],
        (_X, torch.randn(6)),
    ),
    "layer norm without bias": (lambda x, y: F.layer_norm(x, (6,), y, None, 1e-12), (_X, torch.randn(6))),
    "rms norm": (
        lambda x, y: [F.rms_norm(x, (6,)), F.rms_norm(x, (6,), y, 1e-3), F.rms_norm(x, (4, 6))],
        (_X, torch.randn(6)),
    ),
    "group norm": (
        lambda x, y: [F.group_norm(x, 2), F.group_norm(x, 4, y, y + 1), F.group_norm(x, 1)],
        (_FAR, torch.randn(4)),
    ),
    "instance norm": (lambda x: F.instance_norm(x), (_FAR,)),
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[tuple[Tensor, ...]]]:
    return results(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gives_what_torch_gives(name: str, outputs: dict[str, list[tuple[Tensor, ...]]]) -> None:
    for found, eager, exact in outputs[name]:
        require_near(found, eager, exact, name)


def test_batch_norm_uses_its_running_statistics() -> None:
    norm = torch.nn.BatchNorm2d(4).eval()
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert value is not None
        torch.nn.init.uniform_(value, 0.5, 2)
    x = torch.randn(2, 4, 3, 3)
    require_equivalent(captured(norm, x), (x,))
