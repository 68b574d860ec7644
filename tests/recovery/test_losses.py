"""Losses against their formulas, and padding among the vectors."""

import math

import pytest
import torch

from flowopt.errors import ModelNotFound, UserError
from flowopt.recovery.losses import cosine_distance, divergence, relative_error
from flowopt.recovery.padding import padding_of
from flowopt.recovery.user_loss import user_loss

GENERATOR = torch.Generator().manual_seed(7)
FOUND = torch.randn(2, 3, 4, generator=GENERATOR, dtype=torch.float64)
WANTED = torch.randn(2, 3, 4, generator=GENERATOR, dtype=torch.float64)
MASKED = torch.tensor([[False, False, True], [False, True, True]])
REAL = [(0, 0), (0, 1), (1, 0)]


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_divergence_is_that_of_the_two_softmaxes_over_real_tokens() -> None:
    total = 0.0
    for at in REAL:
        p, q = softmax(WANTED[at].tolist(), 2.0), softmax(FOUND[at].tolist(), 2.0)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(divergence(2.0)(FOUND, WANTED, MASKED)) == pytest.approx(4 * total / 3, rel=1e-12)  # sums in float64


def test_relative_error_is_a_ratio_of_sums_over_real_tokens() -> None:
    off = sum(float((FOUND[at] - WANTED[at]).square().sum()) for at in REAL)
    scale = sum(float(WANTED[at].square().sum()) for at in REAL)
    assert float(relative_error(FOUND, WANTED, MASKED)) == pytest.approx(off / scale, rel=1e-12)  # sums in float64


def test_cosine_distance_is_one_minus_the_mean_cosine_of_real_tokens() -> None:
    cosines = [float(FOUND[at] @ WANTED[at] / FOUND[at].norm() / WANTED[at].norm()) for at in REAL]
    assert float(cosine_distance(FOUND, WANTED, MASKED)) == pytest.approx(1 - sum(cosines) / 3, rel=1e-12)  # as above


@pytest.mark.parametrize("distance", [divergence(), relative_error, cosine_distance])
def test_what_padding_holds_does_not_matter(distance: object) -> None:
    assert callable(distance)
    changed = FOUND.clone()
    changed[MASKED] = 1e3
    assert float(distance(changed, WANTED, MASKED)) == float(distance(FOUND, WANTED, MASKED))
    assert float(distance(WANTED, WANTED, None)) == pytest.approx(0.0, abs=1e-12)  # rounding of a cosine in float64


def test_sixteen_bit_outputs_are_compared_in_float32() -> None:
    assert relative_error(FOUND.bfloat16(), WANTED.bfloat16()).dtype is torch.float32


def test_a_mask_fits_what_begins_with_its_axes() -> None:
    tokens = padding_of(torch.ones(2, 3, 4), MASKED)
    assert tokens is not None and torch.equal(tokens, MASKED)
    heads = padding_of(torch.ones(2, 3, 5, 4), MASKED)
    assert heads is not None and torch.equal(heads, MASKED[:, :, None].expand(2, 3, 5))
    channels_first = padding_of(torch.ones(2, 9, 3), MASKED, channel_axis=1)
    assert channels_first is not None and torch.equal(channels_first, MASKED)
    flat = padding_of(torch.ones(6, 4), MASKED)
    assert flat is not None and torch.equal(flat, MASKED.flatten())


def test_a_mask_that_does_not_fit_is_none() -> None:
    assert padding_of(torch.ones(2, 4), MASKED) is None
    assert padding_of(torch.ones(2, 7, 4), MASKED) is None
    assert padding_of(torch.ones(2, 3, 4), None) is None


def test_a_loss_of_the_user_that_is_no_number_is_refused() -> None:
    loss = user_loss("tests.recovery.test_losses:vector_loss")
    with pytest.raises(UserError, match=r"returns a tensor \[2, 3\], not one number"):
        loss({"y": FOUND}, {"y": WANTED}, {})
    with pytest.raises(UserError, match="raised KeyError: 'labels'"):
        user_loss("tests.recovery.test_losses:label_loss")({"y": FOUND}, {"y": WANTED}, {})
    with pytest.raises(ModelNotFound, match="has no function 'absent'"):
        user_loss("tests.recovery.test_losses:absent")


def vector_loss(outputs: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor], extra: object) -> torch.Tensor:
    del extra
    return (outputs["y"] - teacher["y"]).square().mean(-1)


def label_loss(outputs: object, teacher: object, extra: dict[str, torch.Tensor]) -> torch.Tensor:
    del outputs, teacher
    return extra["labels"].sum()
