from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import flowopt
from flowopt.analysis.attention_sites import attention_sites
from flowopt.ops.attention import AttentionShape
from tests.passes.programs import normal

Q, K, V = normal(2, 4, 6, 8), normal(2, 4, 5, 8, seed=1), normal(2, 4, 5, 3, seed=2)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, **self.options)


def test_a_call_is_a_site() -> None:
    program = flowopt.capture(Attention().eval(), (Q, K, V))
    (site,) = attention_sites(program)
    assert (site.name, site.position) == ("scaled_dot_product_attention", 0)
    assert (site.query, site.key, site.value, site.mask) == ("q", "k", "v", None)
    assert site.shape == AttentionShape(heads=4, head_dim=8, value_dim=3, is_causal=False, scale=8**-0.5)
    assert (site.key_heads, site.query_length, site.key_length, site.refusal) == (4, 6, 5, None)
