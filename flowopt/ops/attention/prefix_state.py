"""What linear attention knows of all chunks before a chunk."""

from torch import Tensor, nn


def prefix_state(key: Tensor, value: Tensor) -> Tensor:
    """Sum of k_j^T v_j over the chunks before each.

    state[n] = sum over c < n of key[c]^T value[c]

    The sum of the keys alone comes with a column of ones among the values.

    Args:
        key: (B, H, N, C, F), features of the keys, 0 where a token is none.
        value: (B, H, N, C, M).

    Returns:
        (B, H, N, F, M); all zero for the first chunk.
    """
    until = (key.transpose(-1, -2) @ value).cumsum(2)
    # Moved by a chunk: a sum less its own last term would differ by what that term rounds away, which lies ahead.
    return nn.functional.pad(until[:, :, :-1], (0, 0, 0, 0, 1, 0))
