"""A diagonal state space as steps in real numbers."""

from dataclasses import dataclass

from torch import Tensor

from flowopt.ops.ssm.diagonal_system import DiagonalSystem


@dataclass(frozen=True, slots=True)
class RealRecurrence:
    """re, im = decay_re re - decay_im im + u,  decay_re im + decay_im re;  y = sum read_re re - read_im im.

    No operator of a step needs a complex dtype.

    Attributes:
        decay_re, decay_im, read_re, read_im: (H, N).
    """

    decay_re: Tensor
    decay_im: Tensor
    read_re: Tensor
    read_im: Tensor


def real_recurrence(system: DiagonalSystem) -> RealRecurrence:
    """The steps of a system, in float64."""
    return RealRecurrence(system.poles.real, system.poles.imag, system.gains.real, system.gains.imag)
