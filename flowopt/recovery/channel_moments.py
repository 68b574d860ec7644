"""First and second moments of two values, channel by channel, gathered batch by batch in float64."""

from typing import final

import torch
from torch import Tensor


@final
class ChannelMoments:
    """Counts, means, variance and covariance of a norm's input x and output y in each channel.

    Batches are merged about their own means (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances"): sums of raw squares would cancel in channels whose mean is large.

    Attributes:
        count: (channels,), how many pairs were added.
        mean_x, mean_y: (channels,).
        spread_x: (channels,), sum of the squares of x about its mean.
        joint: (channels,), sum of the products of x and y about their means.
    """

    def __init__(self, channels: int) -> None:
        self.count, self.mean_x, self.mean_y, self.spread_x, self.joint = (
            torch.zeros(channels, dtype=torch.float64) for _ in range(5)
        )

    def add(self, x: Tensor, y: Tensor, kept: Tensor) -> None:
        """Add pairs.

        Args:
            x, y: (rows, channels), float64; what is not kept may be anything.
            kept: (rows, 1) or (rows, channels), boolean.
        """
        kept = kept.expand(x.shape)
        count = kept.sum(0)
        size = count.clamp_min(1)
        mean_x, mean_y = (torch.where(kept, value, 0.0).sum(0) / size for value in (x, y))
        from_x, from_y = (torch.where(kept, v - m, 0.0) for v, m in ((x, mean_x), (y, mean_y)))
        spread, joint = from_x.square().sum(0), (from_x * from_y).sum(0)
        self._merge(*(value.cpu() for value in (count, mean_x, mean_y, spread, joint)))

    @property
    def variance_x(self) -> Tensor:
        """(channels,), of what was added, not of what it is a sample of."""
        return self.spread_x / self.count.clamp_min(1)

    @property
    def mean_square_x(self) -> Tensor:
        """(channels,), of x itself."""
        return self.variance_x + self.mean_x.square()

    def _merge(self, count: Tensor, mean_x: Tensor, mean_y: Tensor, spread: Tensor, joint: Tensor) -> None:
        total = (self.count + count).clamp_min(1)
        away_x, away_y = mean_x - self.mean_x, mean_y - self.mean_y
        between = self.count * count / total
        self.spread_x = self.spread_x + spread + away_x.square() * between
        self.joint = self.joint + joint + away_x * away_y * between
        self.mean_x = self.mean_x + away_x * count / total
        self.mean_y = self.mean_y + away_y * count / total
        self.count = self.count + count
