"""Hedgehog's learnt feature map."""

from typing import final

import torch
from torch import Tensor, nn

from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape


@final
class HedgehogFeatures(FeatureMap):
    """[softmax(W x), softmax(-W x)], each softmax over the features of a head.

    Args:
        shape: of the attention.

    Attributes:
        query_weight, key_weight: (H, D, D), the identity at first; ``x @ weight[head]`` is W x.

    Source: Zhang et al., "The Hedgehog & the Porcupine", arXiv:2402.04347, in the form of LoLCATs, arXiv:2410.10254;
    flash-linear-attention takes one softmax over both halves, so that its weights mean something else.
    """

    query_weight: nn.Parameter
    key_weight: nn.Parameter

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.width, self.floor = 2 * shape.head_dim, 1e-12
        identity = torch.eye(shape.head_dim).repeat(shape.heads, 1, 1)
        self.query_weight, self.key_weight = nn.Parameter(identity), nn.Parameter(identity.clone())

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return _both_signs(query @ self.query_weight.to(query.dtype))

    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        return _both_signs(key @ self.key_weight.to(key.dtype))


def _both_signs(x: Tensor) -> Tensor:
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)
