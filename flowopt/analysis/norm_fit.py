"""What calibration found of one norm: the per-channel affine map nearest to it, and how near that is."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class NormFit:
    """One norm beside ``y[c] = scale[c] * x[c] + shift[c]``, measured on calibration data.

    Attributes:
        site: name of the node whose value readers of the norm see, its gain and shift included.
        tokens: vectors that were counted: padding and massive activations are not.
        massive: vectors left out because their standard deviation is many times the median's.
        score: coefficient of variation CV of the vectors' standard deviation as ``CV / sqrt(1 + CV^2)``: the relative
            error of the best fixed scale. 0 is a norm that changes nothing from token to token.
        massive_ratio: largest standard deviation of any vector, padding apart, over the median.
        sigma: the best fixed standard deviation, ``E[s^2] / E[s]``.
        mean: (channels,), float64, ``E[x[c]]`` of the norm's input.
        mean_square: (channels,), float64, ``E[x[c]^2]`` of the norm's input.
        scale: (channels,), float64.
        shift: (channels,), float64.
    """

    site: str
    tokens: int
    massive: int
    score: float
    massive_ratio: float
    sigma: float
    mean: Tensor
    mean_square: Tensor
    scale: Tensor
    shift: Tensor
