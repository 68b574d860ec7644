"""Softmax inside a chunk, a gated state across chunks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flowopt.errors import UserError
from tests.ops.attention.drawn import (
    CHUNK,
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


def by_hand(given: tuple[Tensor, ...], gate: Tensor, gain: Tensor, chunk: int, scale: float) -> Tensor:
    """Attention of one head that sees all of its chunk, as the docstring has it; all (L, ..)."""
    query, key, value = given
    forget = functional.logsigmoid(gate) / 16
    state, made = torch.zeros(key.shape[1], value.shape[1], dtype=key.dtype), []
    for start in range(0, len(query), chunk):
        q, k, v = (x[start : start + chunk] for x in (query, key, value))
        place = torch.arange(1, len(q) + 1, dtype=key.dtype)[:, None]
        near = (scale * q @ k.T).softmax(-1) @ v
        made.append(near + gain * (place * forget).exp() * (functional.normalize(q, dim=-1) @ state))
        state = forget.exp() * state + functional.normalize(k, dim=-1).T @ v / chunk
    return torch.cat(made)


@torch.no_grad()
def test_is_the_rule_of_the_docstring() -> None:
    linear, given = stand_in("chunk-hybrid", is_causal=False), inputs(LENGTH)
    gate, gain = (dict(linear.named_parameters())[name].flatten() for name in ("gate", "gain"))
    for head in range(2):
        expected = by_hand(tuple(x[1, head] for x in given), gate[head], gain[head], CHUNK, 0.37)
        torch.testing.assert_close(linear(*given)[1, head], expected, rtol=0, atol=1e-12)  # sums of 37


@SIDES
@pytest.mark.parametrize("chunk", [1, 3, 8, 40])
@pytest.mark.parametrize("has_padding", [False, True])
@torch.no_grad()
def test_forms_agree(is_causal: bool, chunk: int, has_padding: bool) -> None:
    given, mask = inputs(LENGTH), key_mask(LENGTH, before=4, behind=6) if has_padding else None
    first, *others = [
        stand_in("chunk-hybrid", is_causal=is_causal, form=form, chunk=chunk)(*given, mask)
        for form in ("parallel", "chunked", "recurrent")
    ]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 8])
@torch.no_grad()
def test_steps_are_the_whole(chunk: int) -> None:
    linear, given = stand_in("chunk-hybrid", is_causal=True, chunk=chunk), inputs(LENGTH)
    torch.testing.assert_close(by_step(linear, *given), linear(*given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["parallel", "chunked", "recurrent"])
def test_the_past_does_not_know_the_future(form: str) -> None:
    linear = stand_in("chunk-hybrid", is_causal=True, form=form)
    assert largest_leak(linear, LENGTH, at=19, visible=19) == 0


@pytest.mark.parametrize("form", ["parallel", "chunked", "recurrent"])
def test_chunks_do_not_know_those_behind_them(form: str) -> None:
    linear = stand_in("chunk-hybrid", is_causal=False, form=form)
    assert largest_leak(linear, LENGTH, at=19, visible=2 * CHUNK) == 0


def test_a_chunk_is_seen_whole_where_attention_is_not_causal() -> None:
    assert largest_leak(stand_in("chunk-hybrid", is_causal=False), LENGTH, at=19, visible=19) > 1e-3


@SIDES
@torch.no_grad()
def test_padding_by_whole_chunks_in_front_and_any_behind_is_as_if_it_were_not_there(is_causal: bool) -> None:
    linear, given = stand_in("chunk-hybrid", is_causal=is_causal), inputs(LENGTH)
    whole = linear(*given, key_mask(LENGTH, before=CHUNK, behind=6))
    cut = linear(*(x[:, :, CHUNK:-6] for x in given))
    torch.testing.assert_close(whole[:, :, CHUNK:-6], cut, rtol=0, atol=1e-12)


@SIDES
def test_a_chunk_of_padding_alone_is_finite_and_has_finite_gradients(is_causal: bool) -> None:
    linear = stand_in("chunk-hybrid", is_causal=is_causal)
    given = tuple(x.requires_grad_() for x in inputs(LENGTH))
    y = linear(*given, key_mask(LENGTH, before=20, behind=6))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*given, *linear.parameters()))


@SIDES
@torch.no_grad()
def test_one_chunk_is_softmax_attention(is_causal: bool) -> None:
    linear, given = stand_in("chunk-hybrid", is_causal=is_causal, chunk=LENGTH), inputs(LENGTH)
    mask = key_mask(LENGTH, behind=6)
    torch.testing.assert_close(linear(*given, mask), softmax_attention(linear, given, mask), rtol=0, atol=1e-12)


@SIDES
@torch.no_grad()
def test_long_half_precision_sequences_are_finite_and_near_float64(is_causal: bool) -> None:
    linear = stand_in("chunk-hybrid", is_causal=is_causal, chunk=64)
    given = tuple((4 * x).half() for x in inputs(4096, batch=1))
    y = linear(*given)
    assert y.dtype is torch.float16
    expected = linear(*(x.double() for x in given))
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-3)  # one rounding of float16


@SIDES
def test_gradients(is_causal: bool) -> None:
    linear = stand_in("chunk-hybrid", is_causal=is_causal, chunk=4)
    given = tuple(x.requires_grad_() for x in inputs(11, batch=1))
    assert torch.autograd.gradcheck(lambda *x: linear(*x[:3]), (*given, *linear.parameters()))


def test_a_gate_that_forgets_everything_is_finite() -> None:
    linear = stand_in("chunk-hybrid", is_causal=True, chunk=1)
    with torch.no_grad():
        dict(linear.named_parameters())["gate"].fill_(-1e6)
    given = tuple(x.requires_grad_() for x in inputs(LENGTH))
    y = linear(*given)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*given, *linear.parameters()))


def test_a_step_of_attention_to_a_whole_chunk_is_refused() -> None:
    linear = stand_in("chunk-hybrid", is_causal=False)
    with pytest.raises(UserError, match="token by token"):
        linear.initial_state(inputs(1)[0])


def test_keys_of_another_sequence_are_refused() -> None:
    query, _, _ = inputs(5)
    _, key, value = inputs(7)
    with pytest.raises(UserError, match="5 queries and 7 keys"):
        stand_in("chunk-hybrid", is_causal=False)(query, key, value)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "is_causal", "form"), [
    ("cpu", True, "chunked"), ("cpu", False, "chunked"), ("cpu", False, "parallel"),
    ("tvm", True, "chunked"), ("tvm", False, "chunked"),
])  # fmt: skip
def test_every_target_runs_other_lengths(target: str, is_causal: bool, form: str, tmp_path: Path) -> None:
    if target == "tvm":
        pytest.importorskip("tvm")
    linear = stand_in("chunk-hybrid", is_causal=is_causal, form=form)
    assert lowered_error(linear, target, tmp_path) < 1e-5  # float32
