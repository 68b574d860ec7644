"""Tokens in chunks of one length."""

from torch import Tensor, nn

from flowopt.ops.attention.chunk_count import chunk_count


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, H, L, D) as (B * H * N, chunk, D) with N = ceil(L / chunk) + 1, filled up with zeros.

    One chunk more than the tokens need, and one axis for batch, heads and chunks: torch.export then proves of any
    length that no axis has the size 1, which it would compile otherwise.
    """
    batch, heads, length, width = x.shape
    count = chunk_count(length, chunk)
    filled = nn.functional.pad(x, (0, 0, 0, count * chunk - length))
    return filled.reshape(batch * heads * count, chunk, width)
