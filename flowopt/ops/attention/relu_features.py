"""relu as the feature map of linear attention."""

from typing import final

from torch import Tensor

from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape


@final
class ReluFeatures(FeatureMap):
    """max(x, 0), elementwise. A query without a positive feature in common with any key gets 0.

    Source: cosFormer's kernel without its positions; Qin et al., arXiv:2202.08791, section 3.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.width, self.floor = shape.head_dim, 1e-6

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return query.relu()

    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        return key.relu()
