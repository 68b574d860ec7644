"""What every feature map of linear attention has in common."""

import abc

from torch import Tensor, nn


class FeatureMap(nn.Module, abc.ABC):
    """Maps queries and keys to features whose product takes the place of exp(q . k).

    Each is made with an ``AttentionShape`` and options of its own. A token's features depend on no other token: else
    padding would change them, or what lies ahead.

    Shapes: query (B, H, L, D), key (B, H, S, D), both multiplied by the root of the softmax's scale, float32 or
    float64; position (.., L, 1), the token's number from 1, of their dtype. The features are (B, H, L, width), not
    negative.

    Attributes:
        width: how many features a head has, F.
        floor: the least that the sum of a query's weights is taken for.
    """

    width: int
    floor: float

    @abc.abstractmethod
    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        """Features of queries."""

    @abc.abstractmethod
    def key_features(self, key: Tensor, position: Tensor) -> Tensor:
        """Features of keys."""
