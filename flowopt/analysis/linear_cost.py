"""Predicted time of linear layers, apart and as one.

    product(N)  =  call + max(2 K (M + half_rows) (N + half_columns) / peak,  (M K + K N + M N) itemsize / bandwidth)
    bias(N)     =  call + 2 M N itemsize / bandwidth
    parts       =  call (1 + n / 2) + 2 M sum N_i itemsize / bandwidth

    apart   =  sum over the n layers of product(N_i) + bias(N_i)
    merged  =  product(sum N_i) + bias(sum N_i) + parts

M are rows, K features in, N features out. Half of the peak is reached at so many rows, or columns: the two constants
say how far products with few of them leave a processor idle. The bias is an operator of its own where the input has
more than two axes. ``parts`` takes the merged output apart.

The model is coarse on purpose: it has to be right about what decides, which is how many operators are called and how
much is copied. It depends on nothing but its arguments, so the same model is built everywhere; where it errs, measured
choices take its place.

Source: Williams et al., "Roofline: an insightful visual performance model", CACM 2009, for the maximum of the two.
"""

from dataclasses import dataclass
from typing import Final

from flowopt.analysis.linear_group import LinearGroup


@dataclass(frozen=True, slots=True)
class Processor:
    """What a processor and its runtime do; by default a server's CPU with two cores, and ONNX Runtime.

    Attributes:
        flops_per_second: of a large product in float32, all cores together: 2 x 80 GFLOP/s.
        bytes_per_second: between memory and cores, all cores together.
        call_seconds: what running one operator costs before it computes anything. Taking a value apart costs half as
            much again for every part.
        half_rows: rows at which a product reaches half of its speed.
        half_columns: columns at which a product reaches half of its speed.
    """

    flops_per_second: float = 160e9
    bytes_per_second: float = 10e9
    call_seconds: float = 5e-6
    half_rows: int = 4
    half_columns: int = 32


TYPICAL_CPU: Final = Processor()


@dataclass(frozen=True, slots=True)
class MergeCost:
    """Seconds that a group of linear layers takes, apart and merged."""

    apart: float
    merged: float

    @property
    def gain(self) -> float:
        """Above 1 where merging is faster."""
        return self.apart / self.merged

    def __str__(self) -> str:
        return f"{self.apart * 1e6:.1f} us apart, {self.merged * 1e6:.1f} us merged (gain {self.gain:.3f})"


def merge_cost(group: LinearGroup, *, copies: bool, processor: Processor = TYPICAL_CPU) -> MergeCost:
    """Predicted cost of a group.

    Args:
        group: the layers.
        copies: whether the runtime copies when it takes the merged output apart. ONNX Runtime does; views cost
            nothing.
        processor: what computes.
    """
    apart = sum(_linear(group, outputs, processor) for outputs in group.outputs)
    merged = _linear(group, sum(group.outputs), processor)
    if copies:
        calls = 1 + len(group.outputs) / 2
        merged += processor.call_seconds * calls + _passed_over(group, sum(group.outputs), processor)
    return MergeCost(apart, merged)


def _linear(group: LinearGroup, outputs: int, processor: Processor) -> float:
    rows, inputs, itemsize = group.rows, group.input_shape[-1], group.dtype.itemsize
    # Vector units hold half as many float64 numbers; 16-bit products run on those of float32.
    peak = processor.flops_per_second * min(1.0, 4 / itemsize)
    computing = 2 * inputs * (rows + processor.half_rows) * (outputs + processor.half_columns) / peak
    moving = (rows * inputs + inputs * outputs + rows * outputs) * itemsize / processor.bytes_per_second
    seconds = processor.call_seconds + max(computing, moving)
    if group.has_bias and len(group.input_shape) > 2:
        seconds += processor.call_seconds + _passed_over(group, outputs, processor)
    return seconds


def _passed_over(group: LinearGroup, outputs: int, processor: Processor) -> float:
    """Reading and writing every output once."""
    return 2 * group.rows * outputs * group.dtype.itemsize / processor.bytes_per_second
