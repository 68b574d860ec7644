"""The simplest leaf that has statistics: a per-channel affine map over a running mean of squares."""

import torch
from torch import Tensor, nn


class AffineLeaf(nn.Module):
    """``weight * x / sqrt(s) + bias`` with the running mean of squares ``s``, which moves in training until ``settle``.

    Args:
        scale: what eval mode multiplies with at first.
        shift: what it adds.
        mean_square: of the batches to come; random where it is not given.
        seed: of the random statistics.
    """

    channel_axis = -1

    def __init__(self, scale: Tensor, shift: Tensor, mean_square: Tensor | None = None, *, seed: int = 0) -> None:
        super().__init__()
        if mean_square is None:
            mean_square = torch.rand(len(scale), generator=torch.Generator().manual_seed(seed)).to(scale) + 0.5
        self.weight = nn.Parameter(scale * mean_square.sqrt())
        self.bias = nn.Parameter(shift.clone())
        self.register_buffer("running", mean_square.clone())
        self.running: Tensor
        self.is_settled = False
        self.last_mask: Tensor | None = None

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        self.last_mask = pad_mask
        if self.training and not self.is_settled:
            real = x if pad_mask is None else x[~pad_mask]
            found = real.detach().square().flatten(0, -2).mean(0)
            self.running.lerp_(found, 0.1)
        return self.weight * x / self.running.sqrt() + self.bias

    def settle(self) -> None:
        self.is_settled = True
