"""Mean and variance of each channel of what a batch norm reads."""

from typing import NamedTuple

from torch import Tensor


class ChannelStatistics(NamedTuple):
    """Mean and unbiased variance, (channels,) each, float64."""

    mean: Tensor
    variance: Tensor
