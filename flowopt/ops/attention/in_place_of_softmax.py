"""A stand-in together with what scaled_dot_product_attention does around its softmax."""

from typing import final

from torch import Tensor, nn

from flowopt.ops.attention.attention_mask import key_mask_of
from flowopt.ops.attention.linear_form import LinearForm


@final
class InPlaceOfSoftmax(nn.Module):
    """Takes the arguments that a call of ``scaled_dot_product_attention`` had.

    Args:
        linear: computes the attention.

    Shapes: query (B, H, L, D), key (B, G, S, D), value (B, G, S, M) with G dividing H; mask as that call had it, of
    which only the padding is taken: whether attention is causal, ``linear`` knows.
    """

    def __init__(self, linear: LinearForm) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        groups = self.linear.shape.heads // key.shape[1]
        if groups > 1:
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        made: Tensor = self.linear(query, key, value, None if mask is None else key_mask_of(mask))
        return made
