"""A low-rank change of a weight matrix."""

import math
from typing import final

import torch
from torch import Tensor, nn


@final
class LowRank(nn.Module):
    """``W + (alpha / rank) B A``: the weight that is read in the place of W.

    At first B is 0, and the weight is W, bit for bit.

    Args:
        weight: W, (out, in); not kept.
        rank: of B A, at least 1.
        alpha: scale of the change.
        generator: of A, on the CPU, so that every device draws the same.

    Source: Hu et al., LoRA, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self._scale = alpha / rank
        bound = 1 / math.sqrt(in_features)
        drawn = torch.empty(rank, in_features, dtype=weight.dtype).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(torch.zeros(out_features, rank, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.b, self.a, alpha=self._scale)

    def merged(self, weight: Tensor) -> Tensor:
        """The sum, in float64 and without gradients."""
        with torch.no_grad():
            return torch.addmm(weight.double(), self.b.double(), self.a.double(), alpha=self._scale)
