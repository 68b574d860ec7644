"""How a convolution moves over its input, in one spelling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor


@dataclass(frozen=True, slots=True)
class Sliding:
    """Stride, padding and dilation along each spatial axis; a padding that is not the same on both sides is text."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    @property
    def pads(self) -> bool:
        """True when the convolution reads zeros around its input."""
        return isinstance(self.padding, str) or any(self.padding)

    def is_pointwise(self, weight: Tensor) -> bool:
        """True when each output point reads the input at that point alone."""
        return set(weight.shape[2:]) == {1} == set(self.stride) and not self.pads


def sliding_of(convolution: fx.Node) -> Sliding:
    """Of ``conv1d``, ``conv2d`` or ``conv3d`` with a recorded weight.

    Along an axis where the kernel has one point dilation means nothing, and is 1.
    """
    weight = recorded_tensor(convolution.args[1])
    assert weight is not None
    kernel = tuple(int(size) for size in weight.shape[2:])
    stride, padding, dilation, groups = (
        convolution.args[at] if len(convolution.args) > at else convolution.kwargs.get(name, default)
        for at, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1), (6, "groups", 1))
    )
    spread = tuple(1 if k == 1 else d for k, d in zip(kernel, _each(dilation, len(kernel)), strict=True))
    assert isinstance(groups, int)
    return Sliding(_each(stride, len(kernel)), _padding(padding, kernel, spread), spread, groups)


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...] | str:
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        total = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        return "same" if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    return _each(padding, len(kernel))


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number per axis: a single number stands for all."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * count if len(values) == 1 else values
