"""Example inputs of zoo models."""

import torch
from torch import Tensor


def token_ids(batch: int, sequence: int, vocabulary: int, seed: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, sequence), generator=torch.Generator().manual_seed(seed))


def right_padded_mask(batch: int, sequence: int) -> Tensor:
    """Ones, then zeros: row i has lost i positions, but no row all of them."""
    lengths = (sequence - torch.arange(batch)).clamp(min=1)
    return (torch.arange(sequence) < lengths.unsqueeze(1)).to(torch.int64)


def images(batch: int, channels: int, size: int, seed: int) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))
