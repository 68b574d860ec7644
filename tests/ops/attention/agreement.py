"""What every stand-in for softmax attention promises, measured."""

import contextlib
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention import AttentionShape, linearization
from flowopt.ops.attention.linear_form import Form
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens

ODD_LENGTHS = (1, 63, 64, 65, 130)
FORMS: tuple[Form, ...] = get_args(Form)
Side = Literal["left", "right"]


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Infinite where either holds a NaN, which would lose every comparison."""
    difference = (one.double() - other.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def forms_of(name: str) -> tuple[Form, ...]:
    """The causal forms that a stand-in has: one whose state would grow with the sequence refuses to be recurrent."""
    found = []
    for form in FORMS:
        with contextlib.suppress(UserError):
            random_attention(name, attention_shape(True), form)
            found.append(form)
    return tuple(found)


@torch.no_grad()
def form_difference(name: str, length: int) -> float:
    """Largest difference of the causal forms, with and without a random mask, and of one step after the other."""
    tokens = random_tokens(length, length)
    mask = torch.rand(2, 1, 1, length, generator=torch.Generator().manual_seed(length)) < 0.7
    forms = forms_of(name)
    made = {form: random_attention(name, attention_shape(True), form) for form in forms}
    differences = []
    for given in (None, mask):
        first = made["parallel"](*tokens, given)
        differences += [largest_difference(first, made[form](*tokens, given)) for form in forms[1:]]
    if "recurrent" not in forms:
        return max(differences)
    state, steps = made["chunked"].initial_state(tokens[0]), []
    for i in range(length):
        query, key, value = (x[:, :, i : i + 1] for x in tokens)
        one, state = made["chunked"].step(query, key, value, state)
        steps.append(one)
    return max(*differences, largest_difference(made["parallel"](*tokens), torch.cat(steps, 2)))


@torch.no_grad()
def causal_leak(name: str, form: Form, length: int = 130, past: int = 70) -> float:
    """How far tokens move when all that lies ahead is another; 0 when they do not differ in one bit."""
    module = random_attention(name, attention_shape(True), form)
    tokens = random_tokens(1, length)
    pairs = zip(tokens, random_tokens(2, length), strict=True)
    others = [torch.cat([x[:, :, :past], 5 * y[:, :, past:] + 1], 2) for x, y in pairs]
    return largest_difference(module(*tokens)[:, :, :past], module(*others)[:, :, :past])


@torch.no_grad()
def padding_difference(name: str, shape: AttentionShape, form: Form, side: Side, padding: int = 33) -> float:
    """Largest difference of padded and truncated sequences, at their real tokens."""
    module = random_attention(name, shape, form)
    real = 37
    padded = real + padding
    rows = slice(0, real) if side == "right" else slice(padded - real, padded)
    wide = random_tokens(4, padded)
    mask = torch.zeros(1, 1, 1, padded, dtype=torch.bool)
    mask[..., rows] = True
    if shape.is_cross:
        query, key, value = random_tokens(4, 20, padded)
        short = module(query, key[:, :, rows], value[:, :, rows])
        return largest_difference(module(query, key, value, mask), short)
    return largest_difference(module(*wide, mask)[:, :, rows], module(*(x[:, :, rows] for x in wide)))


@torch.no_grad()
def half_difference(name: str, length: int, is_causal: bool, options: Mapping[str, object]) -> float:
    """Largest difference of float16 from float64 on the same inputs, over the largest result; infinite for a NaN."""
    shape = AttentionShape(1, 64, 8, is_causal, scale=0.125)
    module = linearization(name)(shape, **options).eval()
    generator = torch.Generator().manual_seed(length)
    query, key = (torch.randn(1, 1, length, 64, generator=generator).half() for _ in range(2))
    # Away from 0, so that sums over the tokens do not cancel.
    value = (torch.randn(1, 1, length, 8, generator=generator) + 3).half()
    found = module.half()(query, key, value)
    exact = module.double()(query.double(), key.double(), value.double())
    return largest_difference(found, exact) / exact.abs().max().item()
