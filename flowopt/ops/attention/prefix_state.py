"""What linear attention knows of all chunks before a chunk."""

from torch import Tensor, nn


def prefix_state(key: Tensor, value: Tensor, sequences: int, chunks: int) -> Tensor:
    """Sum of k_j^T v_j over the chunks before each.

    state[n] = sum over c < n of key[c]^T value[c], the first one all zero

    Ones for values, (.., C, 1), give the sum of the keys alone.

    Args:
        key: (sequences * N, C, F), features of the keys, 0 where a token is none; see ``in_chunks``.
        value: (sequences * N, C, M).
        sequences: how many there are, B * H; perhaps none.
        chunks: of each, N.

    Returns:
        (sequences * N, F, M).
    """
    own = key.transpose(-1, -2) @ value
    until = own.reshape(sequences, chunks, key.shape[2], value.shape[2]).cumsum(1)
    # Moved by a chunk: a sum less its own last term would differ by what that term rounds away, which lies ahead.
    return nn.functional.pad(until, (0, 0, 0, 0, 1, -1)).reshape(key.shape[0], key.shape[2], value.shape[2])
