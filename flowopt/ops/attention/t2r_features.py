"""The learnt feature map of T2R."""

from typing import final

import torch
from torch import Tensor, nn

from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape


@final
class T2rFeatures(FeatureMap):
    """relu(W x + b).

    Args:
        shape: of the attention.

    Attributes:
        query_weight, key_weight: (H, D, D), the identity at first; ``x @ weight[head]`` is W x.
        query_bias, key_bias: (H, 1, D), 0 at first.

    Source: Kasai et al., "Finetuning Pretrained Transformers into RNNs", arXiv:2103.13076, section 2.2.
    """

    query_weight: nn.Parameter
    query_bias: nn.Parameter
    key_weight: nn.Parameter
    key_bias: nn.Parameter

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.width, self.floor = shape.head_dim, 1e-12
        identity = torch.eye(shape.head_dim).repeat(shape.heads, 1, 1)
        self.query_weight, self.key_weight = nn.Parameter(identity), nn.Parameter(identity.clone())
        self.query_bias = nn.Parameter(torch.zeros(shape.heads, 1, shape.head_dim))
        self.key_bias = nn.Parameter(torch.zeros(shape.heads, 1, shape.head_dim))

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return (query @ self.query_weight.to(query.dtype) + self.query_bias.to(query.dtype)).relu()

    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        return (key @ self.key_weight.to(key.dtype) + self.key_bias.to(key.dtype)).relu()
