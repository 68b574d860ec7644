import pytest
import torch

from flowopt.ops.attention.attention_mask import key_mask_of

REAL = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()
# Causal and padding, (2, 1, 4, 4).
VISIBLE = (REAL[:, None] & torch.ones(4, 4).tril().bool())[:, None]


def test_the_last_query_sees_every_real_key() -> None:
    assert torch.equal(key_mask_of(VISIBLE), REAL[:, None, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [-1e4, -1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_low_scores_hide_in_every_dtype(dtype: torch.dtype, hidden: float) -> None:
    scores = torch.where(VISIBLE, 0.0, hidden).to(dtype)
    assert torch.equal(key_mask_of(scores), REAL[:, None, None])


def test_a_mask_that_is_repeated_for_heads_gives_one_for_all() -> None:
    assert key_mask_of(VISIBLE.expand(-1, 3, -1, -1)).shape == (2, 1, 1, 4)


def test_a_mask_without_samples_keeps_its_axes() -> None:
    assert key_mask_of(VISIBLE[0, 0]).shape == (1, 4)
