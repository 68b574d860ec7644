"""Layers of one input, and the pass that merges them whatever it costs."""

from collections.abc import Sequence

from torch import Tensor, nn

from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from tests.passes.programs import randomised

WIDTH = 6
ALWAYS = MergeParallelLinears(min_gain=0.0)


class Parallel(nn.Module):
    """Linear layers of the given numbers of outputs that all read one value."""

    def __init__(self, outputs: Sequence[int], biases: Sequence[bool], width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, n, bias=b) for n, b in zip(outputs, biases, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        value = x.tanh()
        return [layer(value) for layer in self.layers]


def parallel(*outputs: int, bias: bool = True, width: int = WIDTH) -> Parallel:
    return randomised(Parallel(outputs, [bias] * len(outputs), width))
