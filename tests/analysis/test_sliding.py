from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from flowopt.analysis.sliding import Sliding, sliding_of
from flowopt.program.capture import capture
from tests.passes.programs import Written, normal


def sliding(kernel: tuple[int, int], **options: Any) -> Sliding:
    """Of a convolution with a (2, 3, *kernel) weight."""
    module = Written(lambda m, x: F.conv2d(x, m.weight, **options), weight=normal(2, 3, *kernel))
    graph = capture(module.eval(), (normal(1, 3, 8, 8),)).graph
    (convolution,) = (n for n in graph.nodes if n.op == "call_function")
    assert isinstance(convolution, fx.Node)
    return sliding_of(convolution)


def test_one_number_stands_for_every_axis() -> None:
    assert sliding((3, 3), stride=2, padding=1) == Sliding((2, 2), (1, 1), (1, 1), 1)


def test_padding_as_text_is_the_same_as_in_numbers() -> None:
    assert sliding((3, 5), padding="same") == sliding((3, 5), padding=(1, 2))
    assert sliding((3, 3), padding="valid") == sliding((3, 3))


def test_padding_of_two_different_sides_stays_text() -> None:
    found = sliding((2, 3), padding="same")
    assert found.padding == "same" and found.pads


def test_a_kernel_of_one_point_has_no_dilation() -> None:
    assert sliding((1, 3), dilation=2).dilation == (1, 2)


def test_pointwise() -> None:
    weight = torch.zeros(2, 3, 1, 1)
    assert sliding((1, 1), dilation=3).is_pointwise(weight)
    assert not sliding((1, 1), stride=2).is_pointwise(weight)
    assert not sliding((1, 1), padding=1).is_pointwise(weight)
    assert not sliding((1, 3)).is_pointwise(torch.zeros(2, 3, 1, 3))
