"""Tokens in chunks of one length."""

from torch import Tensor, nn


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, H, L, D) as (B, H, N, chunk, D) with N = ceil(L / chunk), the last chunk filled up with zeros."""
    batch, heads, length, width = x.shape
    count = (length + chunk - 1) // chunk
    filled = nn.functional.pad(x, (0, 0, 0, count * chunk - length))
    return filled.reshape(batch, heads, count, chunk, width)
