"""Batch-channel normalization in its published form: a batch norm, then one over groups of channels of each sample."""

import torch
from torch import Tensor, nn


class BatchChannelNorm(nn.Module):
    """An eval-mode batch norm, and a batch norm in train mode over a view in which each row is one group."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.outer = nn.BatchNorm2d(channels)
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1, groups, 1))
        self.bias = nn.Parameter(torch.zeros(1, groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.outer(x).view(1, x.size(0) * self.groups, -1)
        rows = torch.batch_norm(rows, None, None, None, None, True, 0, self.eps, True)
        out = self.weight * rows.view(x.size(0), self.groups, -1) + self.bias
        return out.view_as(x)
