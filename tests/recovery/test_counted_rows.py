"""Padding and massive activations are not fitted to."""

import torch

from flowopt.recovery.counted_rows import counted_rows, rows_of


def value(*lengths: float) -> torch.Tensor:
    """(1, tokens, 2) vectors of these lengths."""
    return torch.tensor([[[length, 0.0] for length in lengths]])


def test_padding_does_not_count() -> None:
    masked = torch.tensor([[False, True, False]])
    assert counted_rows(value(1, 1, 1), masked, 10.0).tolist() == [True, False, True]


def test_massive_vectors_do_not_count() -> None:
    assert counted_rows(value(1, 50, 2, 1), None, 10.0).tolist() == [True, False, True, True]


def test_the_median_is_that_of_real_tokens() -> None:
    masked = torch.tensor([[False, True, True, True]])
    assert counted_rows(value(20, 1, 1, 1), masked, 10.0).tolist() == [True, False, False, False]


def test_channels_may_lie_on_another_axis() -> None:
    images = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert rows_of(images, 1).tolist()[1] == [1.0, 13.0]
    assert counted_rows(images, None, 100.0, 1).shape == (12,)


def test_where_all_is_padding_nothing_counts() -> None:
    assert not counted_rows(value(1, 1), torch.tensor([[True, True]]), 10.0).any()
