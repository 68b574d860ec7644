"""cosFormer's features: relu, reweighted by how far a key is."""

import math
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape


@final
class CosformerFeatures(FeatureMap):
    """[relu(x) cos(a_i), relu(x) sin(a_i)] with a_i = pi / 2 * min(i, M) / M for the token at position i, from 1.

    Products are relu(q_i) . relu(k_j) cos(a_i - a_j), which depends on i - j alone up to position M; the tokens beyond
    it are taken for neighbours. Published with M = the length of the sequence at hand: then one more token would
    change what all others got, so that neither a state could be carried on nor padding be without effect.
    Padding in front of keys alone, in attention to other tokens, moves the keys.

    Args:
        shape: of the attention.
        length: M, of the longest sequence.

    Raises:
        UserError: length is not positive.

    Source: Qin et al., "cosFormer: Rethinking Softmax in Attention", arXiv:2202.08791, section 3.2.
    """

    def __init__(self, shape: AttentionShape, *, length: int = 2048) -> None:
        super().__init__()
        if length < 1:
            raise UserError(f"length={length} must be positive")
        self.width, self.floor, self.length = 2 * shape.head_dim, 1e-6, length

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return self._reweighted(query.relu(), position)

    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        return self._reweighted(key.relu(), position)

    def _reweighted(self, x: Tensor, position: Tensor) -> Tensor:
        angle = position.clamp(max=float(self.length)) * (math.pi / 2 / self.length)
        return torch.cat([x * angle.cos(), x * angle.sin()], -1)
