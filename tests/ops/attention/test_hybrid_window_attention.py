"""Softmax in a window and linear attention beyond it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from tests.ops.attention.drawn import (
    by_step,
    inputs,
    key_mask,
    largest_leak,
    lowered_error,
    softmax_attention,
    stand_in,
)

LENGTH = 37
SIDES = pytest.mark.parametrize("is_causal", [True, False])


def by_hand(given: tuple[Tensor, ...], gate: Tensor, maps: tuple[Tensor, Tensor], window: int, scale: float) -> Tensor:
    """Causal attention of one head, key by key; all (L, ..)."""
    query, key, value = given

    def features(x: Tensor, weight: Tensor) -> Tensor:
        y = x * scale**0.5 @ weight
        return torch.cat([y.softmax(-1), (-y).softmax(-1)])

    rows = []
    for i in range(len(query)):
        scores = [float(query[i] @ key[j]) * scale for j in range(i + 1)]
        near = [j for j in range(i + 1) if i - j < window]
        peak = max(scores[j] for j in near)
        weights = [
            float(gate.sigmoid() * torch.tensor(scores[j] - peak, dtype=torch.float64).exp())
            if j in near
            else float(features(query[i], maps[0]) @ features(key[j], maps[1]))
            for j in range(i + 1)
        ]
        rows.append(sum(w * value[j] for j, w in enumerate(weights)) / sum(weights))
    return torch.stack([torch.as_tensor(row) for row in rows])


@torch.no_grad()
def test_is_the_published_rule() -> None:
    linear, given = stand_in("hybrid", is_causal=True, form="parallel", window=5), inputs(17)
    found = linear(*given)
    parameters = dict(linear.named_parameters())
    for head in range(2):
        maps = (parameters["feature_map.query_weight"][head], parameters["feature_map.key_weight"][head])
        one = tuple(x[1, head] for x in given)
        expected = by_hand(one, parameters["gate"][head].squeeze(), maps, 5, 0.37)
        torch.testing.assert_close(found[1, head], expected, rtol=0, atol=1e-12)  # sums of 17


@SIDES
@pytest.mark.parametrize("window", [1, 3, 8, 9, 20, 40])
@pytest.mark.parametrize("has_padding", [False, True])
@torch.no_grad()
def test_forms_agree(is_causal: bool, window: int, has_padding: bool) -> None:
    given = inputs(LENGTH)
    mask = key_mask(LENGTH, before=4, behind=6) if has_padding else None
    forms = ["parallel", "chunked", "recurrent"][: 3 if is_causal else 2]
    first, *others = [stand_in("hybrid", is_causal=is_causal, form=f, window=window)(*given, mask) for f in forms]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 7])
def test_steps_are_the_whole(window: int) -> None:
    linear, given = stand_in("hybrid", is_causal=True, window=window), inputs(LENGTH)
    torch.testing.assert_close(by_step(linear, *given), linear(*given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["parallel", "chunked", "recurrent"])
def test_the_past_does_not_know_the_future(form: str) -> None:
    linear = stand_in("hybrid", is_causal=True, form=form, window=5)
    assert largest_leak(linear, LENGTH, at=19, visible=19) == 0


@SIDES
@pytest.mark.parametrize("form", ["parallel", "chunked"])
@torch.no_grad()
def test_padding_is_as_if_it_were_not_there(is_causal: bool, form: str) -> None:
    linear, given = stand_in("hybrid", is_causal=is_causal, form=form, window=5), inputs(LENGTH)
    whole = linear(*given, key_mask(LENGTH, before=11, behind=3))
    cut = linear(*(x[:, :, 11:-3] for x in given))
    torch.testing.assert_close(whole[:, :, 11:-3], cut, rtol=0, atol=1e-12)


@SIDES
@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_a_window_of_padding_alone_is_finite_and_has_finite_gradients(is_causal: bool, form: str) -> None:
    linear = stand_in("hybrid", is_causal=is_causal, form=form, window=3)
    given = tuple(x.requires_grad_() for x in inputs(LENGTH))
    y = linear(*given, key_mask(LENGTH, before=20))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*given, *linear.parameters()))


@SIDES
@pytest.mark.parametrize("form", ["parallel", "chunked"])
@torch.no_grad()
def test_weights_sum_to_one(is_causal: bool, form: str) -> None:
    linear, (query, key, value) = stand_in("hybrid", is_causal=is_causal, form=form, window=5), inputs(LENGTH)
    y = linear(query, key, torch.ones_like(value), key_mask(LENGTH, behind=5))
    torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=1e-12)


@SIDES
@pytest.mark.parametrize("form", ["parallel", "chunked"])
@pytest.mark.parametrize("has_padding", [False, True])
@torch.no_grad()
def test_a_window_over_everything_is_softmax_attention(is_causal: bool, form: str, has_padding: bool) -> None:
    linear, given = stand_in("hybrid", is_causal=is_causal, form=form, window=LENGTH), inputs(LENGTH)
    mask = key_mask(LENGTH, before=4, behind=6) if has_padding else None
    expected = softmax_attention(linear, given, mask)
    first = 4 if has_padding else 0  # queries before see no key, and softmax attention has no number for them
    torch.testing.assert_close(linear(*given, mask)[:, :, first:], expected[:, :, first:], rtol=0, atol=1e-12)


@SIDES
@torch.no_grad()
def test_long_half_precision_sequences_are_finite_and_near_float64(is_causal: bool) -> None:
    linear = stand_in("hybrid", is_causal=is_causal, chunk=64, window=64)
    given = tuple((4 * x).half() for x in inputs(4096, batch=1))
    y = linear(*given)
    assert y.dtype is torch.float16
    expected = linear(*(x.double() for x in given))
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-3)  # one rounding of float16


@SIDES
def test_gradients(is_causal: bool) -> None:
    linear = stand_in("hybrid", is_causal=is_causal, window=5, chunk=4)
    given = tuple(x.requires_grad_() for x in inputs(11, batch=1))
    assert torch.autograd.gradcheck(lambda *x: linear(*x[:3]), (*given, *linear.parameters()))


def test_a_window_without_a_key_is_refused() -> None:
    with pytest.raises(UserError, match="window=0"):
        stand_in("hybrid", is_causal=True, window=0)


def test_keys_of_another_sequence_are_refused() -> None:
    query, _, _ = inputs(5)
    _, key, value = inputs(7)
    with pytest.raises(UserError, match="5 queries and 7 keys"):
        stand_in("hybrid", is_causal=False)(query, key, value)


def test_attention_to_all_tokens_has_no_steps() -> None:
    with pytest.raises(UserError, match="no state"):
        stand_in("hybrid", is_causal=False, form="recurrent")(*inputs(5))


def test_onnx_runs_other_lengths(tmp_path: Path) -> None:
    linear = stand_in("hybrid", is_causal=False, window=11)
    assert lowered_error(linear, "cpu", tmp_path) < 1e-5  # float32


@pytest.mark.slow
@pytest.mark.parametrize(("target", "is_causal", "form"), [
    ("cpu", True, "chunked"), ("cpu", True, "parallel"), ("cpu", False, "parallel"),
    ("tvm", True, "chunked"), ("tvm", False, "chunked"),
])  # fmt: skip
def test_every_target_runs_other_lengths(target: str, is_causal: bool, form: str, tmp_path: Path) -> None:
    if target == "tvm":
        pytest.importorskip("tvm")
    linear = stand_in("hybrid", is_causal=is_causal, form=form, window=11)
    assert lowered_error(linear, target, tmp_path) < 1e-5  # float32
