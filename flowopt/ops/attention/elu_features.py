"""elu + 1 as the feature map of linear attention."""

from typing import final

from torch import Tensor, nn

from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.linear_form import AttentionShape


@final
class EluFeatures(FeatureMap):
    """elu(x) + 1, elementwise: exp(x) below 0, x + 1 above.

    Source: Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236, section 3.2.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.width, self.floor = shape.head_dim, 1e-6

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return nn.functional.elu(query) + 1

    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        return nn.functional.elu(key) + 1
