"""Pooling on the CPU against torch's in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lowering.tvm.image_kernels import kernels, relative_error, tensor

BOUND = 1e-6  # at most nine float32 summed


@pytest.fixture(autouse=True)
def _tvm() -> None:
    pytest.importorskip("tvm")


POOLINGS: list[tuple[str, dict[str, Any], Callable[[Tensor], Tensor]]] = [
    (
        "max_pool2d",
        {"pool_size": (3, 3), "strides": (2, 2), "padding": (1, 1)},
        lambda x: torch.max_pool2d(x, 3, 2, 1),
    ),
    (
        "max_pool2d",
        {"pool_size": (2, 2), "strides": (2, 2), "ceil_mode": True},
        lambda x: torch.nn.functional.max_pool2d(x, 2, 2, ceil_mode=True),
    ),
    (
        "max_pool2d",
        {"pool_size": (3, 2), "strides": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
        lambda x: torch.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)),
    ),
    (
        "avg_pool2d",
        {"pool_size": (3, 3), "strides": (2, 2), "padding": (1, 1), "count_include_pad": False},
        lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    (
        "avg_pool2d",
        {"pool_size": (3, 3), "padding": (1, 1), "count_include_pad": True, "ceil_mode": True},
        lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, ceil_mode=True),
    ),
]


@pytest.mark.parametrize("free", [(), (0, 2, 3)])
@pytest.mark.parametrize(("name", "options", "reference"), POOLINGS)
def test_pooling(
    name: str, options: dict[str, Any], reference: Callable[[Tensor], Tensor], free: Sequence[int]
) -> None:
    from tvm import relax

    data = tensor(0, 2, 5, 11, 13)
    found = kernels(getattr(relax.op.nn, name), (data,), free, **options)
    assert set(found.scheduled.values()) == {"schedule_pooling"}
    assert relative_error(found(data), reference(data.double())) < BOUND


def test_a_mean_over_whole_images_is_no_pooling() -> None:
    from tvm import relax

    found = kernels(relax.op.mean, (tensor(0, 2, 5, 11, 13),), axis=(2, 3), keepdims=True)
    assert "schedule_pooling" not in found.scheduled.values()
