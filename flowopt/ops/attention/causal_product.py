"""Causal linear attention before its normalisation."""

import torch
from torch import Tensor

from flowopt.ops.attention.chunk_count import chunk_count
from flowopt.ops.attention.in_chunks import in_chunks
from flowopt.ops.attention.prefix_state import prefix_state


def causal_product(query: Tensor, key: Tensor, value: Tensor, chunk: int | None) -> Tensor:
    """y_i = sum over j <= i of (q_i . k_j) v_j.

    Args:
        query, key: (B, H, L, F), features.
        value: (B, H, L, M).
        chunk: tokens in a chunk: within it pairs are written out, and what lies before it is a sum of k_j^T v_j, so
            that time and memory are linear in L. None: all pairs are written out.

    Returns:
        (B, H, L, M).
    """
    if chunk is None:
        return (query @ key.transpose(-1, -2)).tril() @ value
    batch, heads, length, _ = query.shape
    q, k, v = (in_chunks(x, chunk) for x in (query, key, value))
    within = (q @ k.transpose(-1, -2)).tril() @ v
    chunks = chunk_count(length, chunk)
    y = within + q @ prefix_state(k, v, batch * heads, chunks)
    # Chosen by index: of a slice, torch.export asks whether it is whole, and fixes the length by the answer.
    return y.reshape(batch, heads, chunks * chunk, value.shape[3]).index_select(
        2, torch.arange(length, device=y.device)
    )
