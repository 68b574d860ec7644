"""Entropy of the rows of softmax attention, in slices: the matrix of all scores is never held."""

import torch
from torch import Tensor

from flowopt.ops.attention.attention_mask import HIDDEN_SCORE
from flowopt.ops.attention.linear_form import AttentionShape

# Scores of one slice, over all heads.
_MOST_SCORES = 1 << 22


def visible_keys(mask: Tensor) -> Tensor:
    """Where a mask lets a query see a key: bool is itself; additive hides below ``HIDDEN_SCORE``."""
    return mask if mask.dtype is torch.bool else mask > HIDDEN_SCORE


def entropy_of_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    shape: AttentionShape,
    real: Tensor | None,
    *,
    most_scores: int = _MOST_SCORES,
) -> tuple[float, int]:
    """The sum over rows of entropy / log(keys that the query sees), and how many rows that are.

    Rows that see one key or none have no entropy to speak of, and do not count.

    Args:
        query: (B, H, L, D).
        key: (B, G, S, D), with G dividing H.
        mask: as scaled_dot_product_attention takes it, broadcastable to (B, H, L, S).
        shape: of the attention.
        real: (B, L), False where a query is padding, or None.
        most_scores: that are held at once, over all heads; one query's are in any case.
    """
    batch, heads, length, _ = query.shape
    precise = torch.promote_types(query.dtype, torch.float32)
    rows = max(1, most_scores // (heads * max(key.shape[2], 1)))
    total, count = 0.0, 0
    for sample in range(batch):
        keys = key[sample].to(precise).repeat_interleave(heads // key.shape[1], 0)
        for start in range(0, length, rows):
            at = slice(start, min(start + rows, length))
            scores = (query[sample, :, at].to(precise) @ keys.mT) * shape.scale
            seen = torch.ones((), dtype=torch.bool, device=scores.device).expand_as(scores)
            if shape.is_causal:
                seen = seen.tril(start)
            if mask is not None:
                part = _part(mask, sample, at)
                scores = scores if part.dtype is torch.bool else scores + part
                seen = seen & visible_keys(part)
            counts = seen.sum(-1)
            is_counted = counts > 1
            if real is not None:
                is_counted = is_counted & real[sample, at]
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            entropy = torch.special.entr(weights).sum(-1)[is_counted] / counts[is_counted].to(precise).log()
            total += float(entropy.double().sum())
            count += int(is_counted.sum())
    return total, count


def _part(mask: Tensor, sample: int, at: slice) -> Tensor:
    """The mask of one sample and some queries, broadcastable to (H, queries, S)."""
    whole = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    own = whole[sample if whole.shape[0] > 1 else 0]
    return own if own.shape[-2] == 1 else own[:, at]
