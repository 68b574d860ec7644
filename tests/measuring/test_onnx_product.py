"""Products alone in ONNX Runtime: what is timed is the product that was asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowopt.measuring.onnx_product import onnx_product


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


PRODUCTS: dict[str, tuple[str, tuple[Any, ...], int | None]] = {
    # The bias is the argument at the last place, where there is one.
    "linear": ("aten.linear.default", (normal(2, 5, 6), normal(4, 6)), None),
    "linear with a bias": ("aten.linear.default", (normal(5, 6), normal(4, 6), normal(4)), 2),
    "addmm": ("aten.addmm.default", (normal(4), normal(5, 6), normal(6, 4)), 0),
    "mm": ("aten.mm.default", (normal(5, 6), normal(6, 4)), None),
    "bmm": ("aten.bmm.default", (normal(3, 5, 6), normal(3, 6, 4)), None),
    "conv2d": ("aten.conv2d.default", (normal(2, 4, 9, 8), normal(6, 2, 3, 3), None, [2, 1], [1, 0], [1, 1], 2), None),
    "conv1d as it is": ("aten.conv1d.default", (normal(2, 4, 9), normal(6, 4, 3)), None),
    "convolution": (
        "aten.convolution.default",
        (normal(2, 4, 9, 8), normal(6, 4, 3, 3), normal(6), [1, 1], [1, 1], [2, 2], False, [0, 0], 1),
        2,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_the_product_without_its_bias(name: str) -> None:
    operator, arguments, bias = PRODUCTS[name]
    run = onnx_product(operator, arguments, 1)
    assert run is not None
    packet: Any = torch.ops
    for part in operator.split("."):
        packet = getattr(packet, part)
    plain = [torch.zeros_like(a) if at == bias else a for at, a in enumerate(arguments)]
    torch.testing.assert_close(torch.as_tensor(run()[0]), packet(*plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("aten.linear.default", (normal(5, 6).double(), normal(4, 6).double())),
        ("aten.scaled_dot_product_attention.default", (normal(1, 2, 3, 4),) * 3),
        ("aten.conv2d.default", (normal(1, 4, 9, 8), normal(6, 4, 3, 3), None, [1, 1], "same")),
        (
            "aten.convolution.default",
            (normal(1, 4, 9, 8), normal(4, 6, 3, 3), None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
        ),
    ],
    ids=["float64", "attention", "padding by name", "transposed"],
)
def test_what_has_no_form_is_left_to_torch(operator: str, arguments: tuple[Any, ...]) -> None:
    assert onnx_product(operator, arguments, 1) is None
