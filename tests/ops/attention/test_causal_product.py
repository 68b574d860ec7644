"""Products of chunks are those of all pairs."""

import pytest
import torch

from flowopt.ops.attention import LINEARIZATIONS
from flowopt.ops.attention.causal_product import causal_product
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens


def test_a_chunk_of_any_length_gives_the_products_of_all_pairs() -> None:
    query, key, value = random_tokens(4, 11)
    wanted = causal_product(query, key, value, None)
    for chunk in (1, 4, 64):
        torch.testing.assert_close(causal_product(query, key, value, chunk), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(LINEARIZATIONS))
def test_no_sequence_at_all_gives_none(name: str) -> None:
    query, key, value = random_tokens(4, 11, batch=0)
    assert random_attention(name, attention_shape(True))(query, key, value).shape == value.shape
