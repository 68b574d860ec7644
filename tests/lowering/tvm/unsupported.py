"""A module with an operator that TVM has no form for."""

import torch
from torch import Tensor, nn


class Unsupported(nn.Module):
    """Singular values."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)
