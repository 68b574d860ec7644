import torch

from flowopt.ops.attention.token_sum import token_sum
from tests.passes.programs import normal


def test_it_is_the_sum_over_the_tokens() -> None:
    x = normal(2, 3, 17, 4, dtype=torch.float64)
    # Sums of 17 numbers in float64, in another order.
    torch.testing.assert_close(token_sum(x), x.sum(2, keepdim=True), rtol=1e-13, atol=1e-13)


def test_it_is_exact_for_one_token_and_zero_for_none() -> None:
    x = normal(2, 3, 1, 4)
    assert torch.equal(token_sum(x), x)
    assert torch.equal(token_sum(x[:, :, :0]), torch.zeros(2, 3, 1, 4))
