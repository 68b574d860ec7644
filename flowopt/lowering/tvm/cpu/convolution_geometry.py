"""Where the output of a convolution reads its input: one arithmetic for plain and for transposed convolutions.

Along one dimension, with stride s, dilation d, K weights and p zeros before,

    plain:       out[o] = sum_t  w[t] * in[o * s + t * d - p]
    transposed:  out[o] = sum_k  w[k] * in[(o + p - k) / s]     over the k for which the quotient is whole

The k of a transposed convolution (of dilation 1) depend on o modulo s alone. With o = s * q + r they are
k = (r + p) % s + s * t, and the quotient is q + (r + p) // s - t: each of the s phases r is a plain convolution of
stride 1, and no product with an inserted zero is computed.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial dimension of a convolution.

    Args:
        size: input positions; an int or a symbolic expression.
        kernel: weights along this dimension.
        stride: as given.
        dilation: as given; 1 where ``transposed``.
        before: zeros before the first position, as given.
        after: zeros after the last position, as given; of a transposed convolution, less its output padding.
        transposed: whether the convolution is a transposed one.
    """

    size: Any
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    transposed: bool

    @property
    def output(self) -> Any:
        """Output positions."""
        if self.transposed:
            return (self.size - 1) * self.stride + self.kernel - self.before - self.after
        return (self.size + (self.before + self.after - self.dilation * (self.kernel - 1) - 1)) // self.stride + 1

    @property
    def phases(self) -> int:
        """How many plain convolutions interleave in the output."""
        return self.stride if self.transposed else 1

    @property
    def step(self) -> int:
        """Input positions between neighbouring outputs of one phase."""
        return 1 if self.transposed else self.stride

    @property
    def taps(self) -> int:
        """Weights an output is summed over, zeros that fill up shorter phases among them."""
        return -(-self.kernel // self.phases)

    @property
    def positions(self) -> Any:
        """Output positions of one phase."""
        return (self.output - 1) // self.phases + 1

    @property
    def zeros_before(self) -> int:
        """Zeros before the first position that make every read non-negative; below zero, positions never read."""
        return self.taps - 1 - self.before // self.stride if self.transposed else self.before

    def read(self, phase: Any, position: Any, tap: Any) -> Any:
        """The position in the padded input that an output position of a phase reads for a tap."""
        if not self.transposed:
            return position * self.step + tap * self.dilation
        return position + self._wraps(phase) + (self.taps - 1) - tap

    def padded_size(self, positions: Any) -> Any:
        """How many padded input positions the first ``positions`` of every phase read."""
        if not self.transposed:
            return (positions - 1) * self.step + (self.kernel - 1) * self.dilation + 1
        return positions - 1 + self._wraps(self.stride - 1) + self.taps

    def weight(self, phase: Any, tap: Any) -> Any:
        """Which of the weights a tap of a phase is; at least ``kernel`` where the phase has fewer."""
        if not self.transposed:
            return tap
        return phase + self.before % self.stride - self.stride * self._wraps(phase) + self.stride * tap

    def _wraps(self, phase: Any) -> Any:
        """(phase + before) // stride - before // stride, which is 0 or 1.

        As a choice, not as a quotient: of a sum of quotients and remainders of one loop variable, in which one term is
        shifted, TVM 0.27 simplifies (x % 64 // 32 + 1) % 2 to x % 64 // 32.
        """
        from tvm import tirx

        shift = self.before % self.stride
        if shift == 0:
            return 0
        if isinstance(phase, int):
            return (phase + shift) // self.stride
        return tirx.Select(phase >= self.stride - shift, tirx.const(1, "int64"), tirx.const(0, "int64"))


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution of (batch, groups * in_channels, ...) to (batch, groups * out_channels, ...).

    Args:
        batch: an int or a symbolic expression.
        groups: as given.
        in_channels: input channels of one group.
        out_channels: output channels of one group.
        axes: the spatial dimensions, one to three.
        sum_dtype: in which products are summed.
        out_dtype: of the result.
    """

    batch: Any
    groups: int
    in_channels: int
    out_channels: int
    axes: tuple[Axis, ...]
    sum_dtype: str
    out_dtype: str

    def of(self, data: Any) -> "Geometry":
        """The same convolution of a tensor, in whose shape symbolic sizes have names of their own."""
        axes = tuple(replace(axis, size=size) for axis, size in zip(self.axes, data.shape[2:], strict=True))
        return replace(self, batch=data.shape[0], axes=axes)

    @property
    def is_transposed(self) -> bool:
        """Whether the weights are stored with input channels first, and the output has phases."""
        return self.axes[0].transposed
