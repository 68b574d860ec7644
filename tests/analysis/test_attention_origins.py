from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.attention_sites import attention_sites
from flowopt.program.capture import capture
from tests.analysis.attentions import attend
from tests.passes.programs import Written, normal

WIDTH, HEADS = 16, 2
X, MEMORY = normal(2, 6, WIDTH), normal(2, 6, WIDTH, seed=1)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)


def is_cross(function: Callable[..., Tensor], *inputs: Tensor) -> bool:
    names = ("q", "k", "v", "o", "up", "down")
    parts: dict[str, nn.Module] = {name: nn.Linear(WIDTH, WIDTH) for name in names}
    parts |= {"fused": nn.Linear(WIDTH, 3 * WIDTH), "pair": nn.Linear(WIDTH, 2 * WIDTH), "few": nn.Linear(WIDTH, 8)}
    parts |= {"norm": nn.LayerNorm(WIDTH), "other": nn.LayerNorm(WIDTH), "each": nn.LayerNorm(WIDTH // HEADS)}
    parts |= {"table": nn.Embedding(9, WIDTH), "many": nn.Linear(8, WIDTH)}
    program = capture(Written(function, **parts).eval(), inputs)
    *_, site = attention_sites(program)
    assert site.refusal is None
    return site.shape.is_cross


def fused(m: Any, x: Tensor) -> Tensor:
    return attend(*(heads(t) for t in m.fused(x).chunk(3, -1)))


def separate(m: Any, x: Tensor) -> Tensor:
    return attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)))


def grouped(m: Any, x: Tensor) -> Tensor:
    keys = heads(m.few(x))
    return attend(heads(m.q(x)), keys, keys, enable_gqa=True)


def rotary(m: Any, x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[1])[:, None] * torch.arange(1.0, WIDTH // HEADS + 1)

    def rotated(t: Tensor) -> Tensor:
        left, right = m.each(t).chunk(2, -1)
        return m.each(t) * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    return attend(rotated(heads(m.q(x))), rotated(heads(m.k(x))), heads(m.v(x)))


def through_few(m: Any, x: Tensor) -> Tensor:
    keys = heads(m.pair(x)[..., :WIDTH])
    return attend(heads(m.many(m.few(x))), keys, keys)


def after_other_norms(m: Any, x: Tensor) -> Tensor:
    keys = heads(m.k(m.other(x)))
    return attend(heads(m.q(m.norm(x))), keys, keys)


SELF: dict[str, Callable[..., Tensor]] = {
    "fused": fused,
    "separate": separate,
    "grouped": grouped,
    "rotary with norms": rotary,
    "queries through few features": through_few,
    "after norms of their own": after_other_norms,
}


@pytest.mark.parametrize("name", SELF)
def test_queries_and_keys_of_the_same_tokens_are_no_cross_attention(name: str) -> None:
    assert not is_cross(SELF[name], X)


def of_memory(m: Any, x: Tensor, memory: Tensor) -> Tensor:
    keys, values = m.pair(memory).chunk(2, -1)
    return attend(heads(m.q(x)), heads(keys), heads(values))


def decoder(m: Any, x: Tensor, memory: Tensor) -> Tensor:
    memory = m.other(memory + m.down(m.up(memory).relu()))
    for _ in range(2):
        own = attend(*(heads(t) for t in m.fused(m.norm(x)).chunk(3, -1)), is_causal=True)
        x = x + m.o(own.transpose(1, 2).flatten(2))
        x = x + m.o(of_memory(m, m.norm(x), memory).transpose(1, 2).flatten(2))
    return of_memory(m, m.norm(x), memory)


CROSS: dict[str, Callable[..., Tensor]] = {"of a memory": of_memory, "in a decoder": decoder}


@pytest.mark.parametrize("name", CROSS)
def test_keys_of_other_tokens_are_cross_attention_at_equal_lengths(name: str) -> None:
    assert is_cross(CROSS[name], X, MEMORY)


def test_halves_of_one_sequence_are_other_tokens() -> None:
    def halves(m: Any, x: Tensor) -> Tensor:
        return of_memory(m, *x.chunk(2, 1))

    assert is_cross(halves, X)


def test_without_linear_layers_equal_lengths_are_of_the_same_tokens() -> None:
    def bare(m: Any, x: Tensor, memory: Tensor) -> Tensor:
        return attend(heads(x), heads(memory), heads(memory))

    assert not is_cross(bare, X, MEMORY)
