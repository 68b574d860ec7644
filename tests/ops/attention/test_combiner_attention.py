"""The own row of a sequence directly, the others by their summaries."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from tests.ops.attention.drawn import (
    CHUNK,
    inputs,
    key_mask,
    largest_leak,
    lowered_error,
    softmax_attention,
    stand_in,
)

LENGTH = 37
SIDES = pytest.mark.parametrize("is_causal", [True, False])


def by_hand(
    given: tuple[Tensor, ...], maps: tuple[Tensor, Tensor], chunk: int, scale: float, is_causal: bool
) -> Tensor:
    """Attention of one head, query by query; all (L, ..)."""
    query, key, value = given
    rows = [torch.arange(s, min(s + chunk, len(query))) for s in range(0, len(query), chunk)]
    made = []
    for i in range(len(query)):
        logits, held = [], []
        for r, row in enumerate(rows):
            if r == i // chunk:
                own = row[row <= i] if is_causal else row
                logits.append(scale * key[own] @ query[i])
                held.append(value[own])
            elif r < i // chunk or not is_causal:
                middle, summary = query[row].mean(0) @ maps[0], key[row].mean(0) @ maps[1]
                logits.append((scale * query[i] @ summary).exp().mul(len(row)).log()[None])
                held.append((scale * key[row] @ middle).softmax(0)[None] @ value[row])
        made.append(torch.cat(logits).softmax(0) @ torch.cat(held))
    return torch.stack(made)


@SIDES
@torch.no_grad()
def test_is_the_rule_of_the_docstring(is_causal: bool) -> None:
    linear, given = stand_in("combiner", is_causal=is_causal), inputs(LENGTH)
    query_map, key_map = (dict(linear.named_parameters())[name] for name in ("query_map", "key_map"))
    for head in range(2):
        one = tuple(x[1, head] for x in given)
        expected = by_hand(one, (query_map[head], key_map[head]), CHUNK, 0.37, is_causal)
        torch.testing.assert_close(linear(*given)[1, head], expected, rtol=0, atol=1e-12)  # sums of 37


@SIDES
@pytest.mark.parametrize("chunk", [1, 3, 8, 40])
@pytest.mark.parametrize("has_padding", [False, True])
@torch.no_grad()
def test_forms_agree(is_causal: bool, chunk: int, has_padding: bool) -> None:
    given, mask = inputs(LENGTH), key_mask(LENGTH, before=4, behind=6) if has_padding else None
    one, other = (
        stand_in("combiner", is_causal=is_causal, form=form, chunk=chunk)(*given, mask)
        for form in ("parallel", "chunked")
    )
    torch.testing.assert_close(other, one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_the_past_does_not_know_the_future(form: str) -> None:
    assert largest_leak(stand_in("combiner", is_causal=True, form=form), LENGTH, at=19, visible=19) == 0


@SIDES
@torch.no_grad()
def test_padding_by_whole_rows_in_front_and_any_behind_is_as_if_it_were_not_there(is_causal: bool) -> None:
    linear, given = stand_in("combiner", is_causal=is_causal), inputs(LENGTH)
    whole = linear(*given, key_mask(LENGTH, before=CHUNK, behind=6))
    cut = linear(*(x[:, :, CHUNK:-6] for x in given))
    torch.testing.assert_close(whole[:, :, CHUNK:-6], cut, rtol=0, atol=1e-12)


@SIDES
@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_a_row_of_padding_alone_is_finite_and_has_finite_gradients(is_causal: bool, form: str) -> None:
    linear = stand_in("combiner", is_causal=is_causal, form=form)
    given = tuple(x.requires_grad_() for x in inputs(LENGTH))
    y = linear(*given, key_mask(LENGTH, before=20, behind=6))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*given, *linear.parameters()))


@SIDES
@pytest.mark.parametrize("form", ["parallel", "chunked"])
@torch.no_grad()
def test_weights_sum_to_one(is_causal: bool, form: str) -> None:
    linear, (query, key, value) = stand_in("combiner", is_causal=is_causal, form=form), inputs(LENGTH)
    y = linear(query, key, torch.ones_like(value), key_mask(LENGTH, behind=5))
    torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=1e-12)


@SIDES
@torch.no_grad()
def test_one_row_is_softmax_attention(is_causal: bool) -> None:
    linear, given = stand_in("combiner", is_causal=is_causal, chunk=LENGTH), inputs(LENGTH)
    mask = key_mask(LENGTH, behind=6)
    torch.testing.assert_close(linear(*given, mask), softmax_attention(linear, given, mask), rtol=0, atol=1e-12)


@SIDES
@torch.no_grad()
def test_equal_keys_in_each_row_are_softmax_attention(is_causal: bool) -> None:
    linear, (query, key, value) = stand_in("combiner", is_causal=is_causal), inputs(LENGTH)
    for parameter in linear.parameters():
        parameter.copy_(torch.eye(parameter.shape[-1]).expand_as(parameter))
    key = key[:, :, ::CHUNK].repeat_interleave(CHUNK, 2)[:, :, :LENGTH]
    given, mask = (query, key, value), key_mask(LENGTH, behind=6)
    torch.testing.assert_close(linear(*given, mask), softmax_attention(linear, given, mask), rtol=0, atol=1e-12)


@SIDES
@torch.no_grad()
def test_long_half_precision_sequences_are_finite_and_near_float64(is_causal: bool) -> None:
    linear = stand_in("combiner", is_causal=is_causal, chunk=64)
    given = tuple((4 * x).half() for x in inputs(4096, batch=1))
    y = linear(*given)
    assert y.dtype is torch.float16
    expected = linear(*(x.double() for x in given))
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-3)  # one rounding of float16


@SIDES
def test_gradients(is_causal: bool) -> None:
    linear = stand_in("combiner", is_causal=is_causal, chunk=4)
    given = tuple(x.requires_grad_() for x in inputs(11, batch=1))
    assert torch.autograd.gradcheck(lambda *x: linear(*x[:3]), (*given, *linear.parameters()))


def test_there_is_no_recurrent_form() -> None:
    with pytest.raises(UserError, match="token by token"):
        stand_in("combiner", is_causal=True, form="recurrent")
    with pytest.raises(UserError, match="token by token"):
        stand_in("combiner", is_causal=True).initial_state(inputs(1)[0])


def test_keys_of_another_sequence_are_refused() -> None:
    query, _, _ = inputs(5)
    _, key, value = inputs(7)
    with pytest.raises(UserError, match="5 queries and 7 keys"):
        stand_in("combiner", is_causal=False)(query, key, value)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "is_causal", "form"), [
    ("cpu", True, "chunked"), ("cpu", False, "chunked"), ("cpu", False, "parallel"),
    ("tvm", True, "chunked"), ("tvm", False, "chunked"),
])  # fmt: skip
def test_every_target_runs_other_lengths(target: str, is_causal: bool, form: str, tmp_path: Path) -> None:
    if target == "tvm":
        pytest.importorskip("tvm")
    linear = stand_in("combiner", is_causal=is_causal, form=form)
    assert lowered_error(linear, target, tmp_path) < 1e-5  # float32
