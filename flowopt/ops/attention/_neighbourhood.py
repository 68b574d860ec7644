"""Sequences cut into chunks, and what a chunk sees of the others. Every length may be free while torch traces."""

import torch
from torch import Tensor
from torch.nn import functional

from flowopt.ops.attention.chunk_count import chunk_count


def cut(x: Tensor, chunk: int) -> Tensor:
    """(B, H, L, D) as (B, H, chunks, chunk, D), with zeros behind the last token.

    The last chunk is all zeros, so that there are always two: torch.export proves nothing of sizes that may be 1.
    """
    batch, heads, length, width = x.shape
    chunks = chunk_count(length, chunk)
    return functional.pad(x, (0, 0, 0, chunks * chunk - length)).reshape(batch, heads, chunks, chunk, width)


def joined(x: Tensor, length: int) -> Tensor:
    """What ``cut`` was given."""
    # A slice has an end, which torch.export would have to prove to be inside.
    return x.flatten(2, 3).index_select(2, torch.arange(length, device=x.device))


def with_neighbours(x: Tensor, before: int, behind: int) -> Tensor:
    """Every chunk joined with its neighbours, (B, H, chunks, (before + 1 + behind) chunk, D); zeros past both ends."""
    chunks = x.shape[2]
    padded = functional.pad(x, (0, 0, 0, 0, before, behind))
    return torch.cat([padded[:, :, shift : shift + chunks] for shift in range(before + 1 + behind)], 3)


def summed_before(x: Tensor, distance: int) -> Tensor:
    """At every chunk c the sum over the chunks up to c - distance: (B, H, chunks, ..) as given."""
    return functional.pad(x.cumsum(2), (0, 0, 0, 0, distance, 0))[:, :, : x.shape[2]]


def summed_behind(x: Tensor, distance: int) -> Tensor:
    """At every chunk c the sum over the chunks from c + distance on."""
    # Not the total less a prefix: what is far from the end would be what rounding left of it.
    return summed_before(x.flip(2), distance).flip(2)


def real_tokens(like: Tensor, key_mask: Tensor | None) -> Tensor:
    """1 at every key that is real and 0 at padding, (B, 1, S, 1), of a dtype that sums are made in."""
    precise = torch.promote_types(like.dtype, torch.float32)
    real = torch.ones_like(like[:, :1, :, :1], dtype=precise)
    return real if key_mask is None else real * key_mask.to(precise).transpose(-1, -2)


def counted(value: Tensor, real: Tensor) -> Tensor:
    """Values of real keys with a 1 behind them, zeros elsewhere: their weighed sum holds the sum of the weights."""
    seen = real.expand(*value.shape[:-1], 1)
    return torch.cat([value.to(real.dtype) * seen, seen], -1)


def divided(total: Tensor) -> Tensor:
    """The weighed mean out of a weighed sum of what ``counted`` gave; 0 where nothing has a weight."""
    # Padding that sees nothing; a query that sees a key has a weight far above.
    return total[..., :-1] / total[..., -1:].clamp(min=1e-30)


def peaked(scores: Tensor, seen: Tensor) -> Tensor:
    """exp(scores - their largest) over the last axis where they are seen, else 0."""
    masked = scores.masked_fill(~seen, -torch.inf)
    # Where nothing is seen, -inf less the lowest number is still -inf.
    largest = masked.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    return (masked - largest).exp()
