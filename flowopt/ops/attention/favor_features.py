"""Performer's positive random features."""

import math
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape

_ADDED = 1e-4
_LARGEST = 60.0


@final
class FavorFeatures(FeatureMap):
    """exp(w . x - |x|^2 / 2 - m) + 1e-4 for each of some directions w, whose products have the mean exp(q . k).

    For a query, m is its own largest w . q: a factor that its denominator has, too. For keys, m is 0 and the exponent
    is cut at 60: Performer takes m over all keys, but of them those that lie ahead have no say in causal attention,
    and no sum could be carried on once a larger one comes. The exponent is at most |w|^2 / 2, so that 60 is reached
    only by a key near a direction that is longer than 10, and float32 holds e^60 a million million times.

    Args:
        shape: of the attention.
        directions: F, how many; D ln D by default.
        seed: of the directions, which are constant.

    Attributes:
        projection: buffer (F, D), blocks of D orthogonal rows, each as long as a Gaussian vector.

    Raises:
        UserError: directions is not positive.

    Source: Choromanski et al., "Rethinking Attention with Performers", arXiv:2009.14794, section 2.3.
    """

    projection: Tensor

    def __init__(self, shape: AttentionShape, *, directions: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if directions is None:
            directions = max(1, round(shape.head_dim * math.log(shape.head_dim)))
        if directions < 1:
            raise UserError(f"directions={directions} must be positive")
        self.width, self.floor = directions, 1e-12
        self.register_buffer("projection", _orthogonal(directions, shape.head_dim, seed))

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        # The square of the query's length is a factor of all its features, which m takes out.
        along = query @ self.projection.to(query.dtype).T
        return (along - along.amax(-1, keepdim=True)).exp() + _ADDED

    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        exponent = key @ self.projection.to(key.dtype).T - (key * key).sum(-1, keepdim=True) / 2
        return exponent.clamp(max=_LARGEST).exp() + _ADDED


def _orthogonal(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for start in range(0, rows, width):
        gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        # Uniform over all rotations only once R's diagonal is positive: else products have another mean than exp.
        blocks.append((q * r.diagonal().sign()).T[: rows - start])
    lengths = torch.randn(rows, width, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True).sqrt()
    return (torch.cat(blocks) * lengths).to(torch.get_default_dtype())
