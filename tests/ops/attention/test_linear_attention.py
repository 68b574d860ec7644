"""What all stand-ins promise: every form is the same function, causal, and blind to padding."""

from collections.abc import Callable

import pytest
import torch

from flowopt.errors import UserError
from flowopt.ops.attention.linear_form import Form
from tests.ops.attention.agreement import (
    FORMS,
    ODD_LENGTHS,
    Side,
    causal_leak,
    form_difference,
    forms_of,
    half_difference,
    largest_difference,
    padding_difference,
)
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens

NORMALISED = ("elu", "relu", "favor", "cosformer", "hedgehog", "t2r")
NAMES = ("mean", *NORMALISED, "flow")
WITHOUT_POSITIONS = tuple(name for name in NAMES if name != "cosformer")


@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_there(name: str) -> None:
    assert forms_of(name) == FORMS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", ODD_LENGTHS)
def test_parallel_chunked_and_recurrent_agree(name: str, length: int) -> None:
    assert form_difference(name, length) < 1e-10  # sums of 130 products in float64


@pytest.mark.parametrize("name", [name for name in NORMALISED if name in WITHOUT_POSITIONS])
def test_the_causal_form_is_that_of_every_prefix(name: str) -> None:
    """A form of its own: attention to all tokens, of which the last query is read."""
    causal = random_attention(name, attention_shape(True))
    to_all = random_attention(name, attention_shape(False))
    query, key, value = random_tokens(5, 70)
    whole = causal(query, key, value)
    for i in (0, 63, 64, 69):
        last = to_all(query[:, :, i : i + 1], key[:, :, : i + 1], value[:, :, : i + 1])
        assert largest_difference(whole[:, :, i : i + 1], last) < 1e-12  # sums of 70 products


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_what_lies_ahead_does_not_change_one_bit(name: str, form: Form) -> None:
    assert causal_leak(name, form) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
def test_causal_attention_does_not_see_padding(name: str, side: Side, form: Form) -> None:
    assert padding_difference(name, attention_shape(True), form, side) < 1e-12  # sums of 37 products in another order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_to_all_tokens_does_not_see_padding(name: str, side: Side) -> None:
    shape = attention_shape(False)
    assert padding_difference(name, shape, "chunked", side) < 1e-12  # sums of 37 products in another order


@pytest.mark.parametrize("name", WITHOUT_POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_to_other_tokens_does_not_see_padding(name: str, side: Side) -> None:
    shape = attention_shape(False, is_cross=True)
    assert padding_difference(name, shape, "chunked", side) < 1e-12  # sums of 37 products in another order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_rows_without_any_real_key_are_finite(name: str, form: Form, is_causal: bool) -> None:
    module = random_attention(name, attention_shape(is_causal), form)
    tokens = [x.requires_grad_() for x in random_tokens(6, 9)]
    made = module(*tokens, torch.zeros(1, 1, 1, 9, dtype=torch.bool))
    made.sum().backward()
    assert made.eq(0).all()
    assert all(x.grad is None or x.grad.isfinite().all() for x in tokens)


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_mean_of_ones_is_one(name: str, is_causal: bool) -> None:
    module = random_attention(name, attention_shape(is_causal))
    query, key, value = random_tokens(7, 70)
    if name in ("relu", "cosformer", "t2r"):
        query, key = query.abs() + 1, key.abs() + 1  # positive features, so that no sum of weights is 0
    found = module(query, key, torch.ones_like(value))
    assert (found - 1).abs().max() < 1e-12  # sums of 70 weights, twice


@pytest.mark.parametrize("name", (*NORMALISED, "flow"))
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_all_inputs_and_parameters_are_finite(name: str, is_causal: bool) -> None:
    module = random_attention(name, attention_shape(is_causal)).float()
    tokens = [(3 * x).float().requires_grad_() for x in random_tokens(8, 70)]
    module(*tokens).square().sum().backward()
    gradients = [x.grad for x in (*tokens, *module.parameters())]
    assert all(g is not None and g.isfinite().all() and g.ne(0).any() for g in gradients)


@pytest.mark.parametrize("name", WITHOUT_POSITIONS)
def test_attention_to_all_tokens_does_not_depend_on_the_order_of_keys(name: str) -> None:
    module = random_attention(name, attention_shape(False, is_cross=True))
    query, key, value = random_tokens(9, 20, 33)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    found = module(query, key[:, :, order], value[:, :, order])
    assert largest_difference(found, module(query, key, value)) < 1e-12  # sums of 33 products in another order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_half_precision_is_summed_in_float32(name: str, is_causal: bool) -> None:
    options = {"favor": {"directions": 64}, "cosformer": {"length": 16384}}.get(name, {})
    assert half_difference(name, 16384, is_causal, options) < 1e-3  # the result is rounded to 11 bits


@pytest.mark.parametrize("name", NAMES)
def test_attention_to_all_tokens_has_no_state(name: str) -> None:
    with pytest.raises(UserError, match="no state"):
        random_attention(name, attention_shape(False)).initial_state(torch.zeros(1, 2, 1, 8))


@pytest.mark.parametrize("name", (*NORMALISED, "flow"))
def test_the_form_of_a_long_sequence_holds_no_matrix_of_all_scores(name: str) -> None:
    length = 1024
    module = random_attention(name, attention_shape(True))
    largest = 0

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self,
            function: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    with torch.no_grad(), Sizes():
        module(*random_tokens(10, length))
    # Per token a row of its chunk (64), or features and values: never features times values.
    assert largest <= 2 * 2 * (length + 64) * 64
