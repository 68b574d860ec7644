import pytest
import torch

from flowopt.ops.attention import AttentionShape
from flowopt.recovery.attention_entropy import entropy_of_rows, visible_keys
from tests.passes.programs import normal

SHAPE = AttentionShape(heads=4, head_dim=6, value_dim=6, is_causal=False, scale=0.5)
CAUSAL = AttentionShape(heads=4, head_dim=6, value_dim=6, is_causal=True, scale=0.5)
Q, K = normal(2, 4, 9, 6, dtype=torch.float64), normal(2, 2, 9, 6, dtype=torch.float64, seed=1)
SEEN = normal(2, 1, 9, 9, seed=2) > -0.5


@pytest.mark.parametrize("shape", [SHAPE, CAUSAL], ids=["all", "causal"])
@pytest.mark.parametrize("mask", [None, SEEN, SEEN[:, :, -1:], SEEN[0, 0]], ids=["none", "full", "one row", "rank 2"])
def test_slices_of_any_size_give_the_same(shape: AttentionShape, mask: torch.Tensor | None) -> None:
    real = normal(2, 9, seed=3) > -1.0
    whole = entropy_of_rows(Q, K, mask, shape, real)
    for most in (1, 80, 4 * 9 * 4):
        total, count = entropy_of_rows(Q, K, mask, shape, real, most_scores=most)
        assert count == whole[1]
        # Sums of at most 72 numbers in float64, in another order.
        assert total == pytest.approx(whole[0], rel=1e-12)


def test_an_additive_mask_hides_as_a_bool_one_does() -> None:
    additive = torch.zeros(SEEN.shape, dtype=torch.float64).masked_fill(~SEEN, torch.finfo(torch.float64).min)
    assert torch.equal(visible_keys(additive), SEEN)
    assert entropy_of_rows(Q, K, additive, SHAPE, None) == entropy_of_rows(Q, K, SEEN, SHAPE, None)


def test_a_row_that_sees_one_key_does_not_count() -> None:
    assert entropy_of_rows(Q, K, None, CAUSAL, None)[1] == 2 * 4 * 8
    assert entropy_of_rows(Q[:, :, :1], K[:, :, :1], None, SHAPE, None) == (0.0, 0)


def test_scores_of_half_precision_are_computed_in_single() -> None:
    large = (100.0 * Q).half()
    total, count = entropy_of_rows(large, (100.0 * K).half(), None, SHAPE, None)
    exact, _ = entropy_of_rows(large.double(), (100.0 * K).half().double(), None, SHAPE, None)
    assert count == 72
    # Scores near 1e4 rounded to float32; products of half precision would be infinite.
    assert total == pytest.approx(exact, abs=1e-2)
