import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.cleanup.eliminate_key_bias import EliminateKeyBias
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.passes.fold.fold_scale import FoldScale
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from tests.passes.fold.layers import DTYPES
from tests.passes.fold.values import FORMS, HEADS, WIDTH, attention, heads, library, merged, projected
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together

X = normal(2, 5, WIDTH)
FREE: dict[str, Any] = {"dynamic": {"x": {0: "batch", 1: "tokens"}}}
LOWEST = torch.finfo(torch.float32).min


def assert_eliminates(model: nn.Module | Program, *inputs: Tensor, sites: int = 1, **options: Any) -> PipelineRun:
    """The pass fires at ``sites`` sites, and no key projection keeps its bias."""
    run = assert_rewrites(EliminateKeyBias(), model, inputs, before={}, after={}, **options)
    (record,) = run.records
    assert (len(record.applied), record.refused) == (sites, ())
    assert not [name for name in run.program.tensors if name.endswith("key.bias")]
    return run


def of(forward: Callable[..., Any]) -> Written:
    module = attention("library")
    module.function = forward
    return module


def weighed(m: Written, x: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
    """Written attention with ``between`` from the product to the softmax."""
    q, k, v = projected(m, x)
    return merged(torch.softmax(between(q @ k.mT), -1) @ v)


@st.composite
def attentions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Attention, with an input."""
    form = draw(st.sampled_from(["library", "causal", "grouped", "written", "written-grouped", "stacked"]))
    module = attention(form, seed=draw(st.integers(0, 99)))
    dtype = draw(DTYPES)
    return module.to(dtype), normal(draw(st.integers(1, 2)), draw(st.integers(1, 5)), WIDTH, dtype=dtype)


def assert_all_eliminate(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_eliminates(module, *inputs, sites=len(cases))


@settings(deadline=None, derandomize=True, max_examples=3)
@given(st.lists(attentions(), min_size=2, max_size=3))
def test_any_key_bias_is_removed(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_eliminate(cases)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(attentions(), min_size=2, max_size=4))
def test_any_of_many_key_biases_is_removed(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_eliminate(cases)


@pytest.mark.parametrize("form", ["library", "stacked"])
def test_fires_for_free_batch_and_sequence(form: str) -> None:
    assert_eliminates(attention(form), X, **FREE)


@pytest.mark.parametrize("form", ["written", "written-grouped"])
def test_fires_on_decomposed_attention(form: str) -> None:
    assert_eliminates(canonical(decomposed(attention(form), X)), X)


def test_fires_on_decomposed_library_attention_whose_scales_are_folded() -> None:
    module = together([(attention(form), X) for form in ("library", "hiding-mask")])[0]
    program = canonical(decomposed(module, X, X))
    assert_eliminates(run_passes(program, [FoldScale()]).program, X, X, sites=2)


def test_no_mask_stands_in_the_way() -> None:
    masked = [form for form in FORMS if form.endswith(("-mask", "-masked", "-masks"))]
    assert_all_eliminate([(attention(form), X) for form in masked])


@pytest.mark.parametrize("is_written", [False, True])
def test_a_row_that_is_hidden_completely_stays_as_it_was(is_written: bool) -> None:
    module = attention("hiding-mask")
    if is_written:
        module = of(lambda m, x: weighed(m, x, lambda s: s.masked_fill(~m.hiding, -math.inf)))
    run = assert_eliminates(module, X)
    (before,), (after,) = capture(module, (X,)).run_named({"x": X}).values(), run.program.run_named({"x": X}).values()
    assert torch.equal(before[:, 0].isnan(), after[:, 0].isnan())
    assert bool(before[:, 0].isnan().all()) is is_written
    assert torch.equal(before[:, 0].nan_to_num(), after[:, 0].nan_to_num())


def test_scales_added_masks_and_hidden_places_leave_a_shift_a_shift() -> None:
    hidden, positions = torch.ones(5, 5).triu(1) > 0, torch.arange(5.0)
    ways: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda s, x: s * torch.linspace(-1.0, 2.0, HEADS)[:, None, None] + positions.outer(positions),
        lambda s, x: 2.0 * s - positions,
        lambda s, x: (positions - s / 3.0).double(),
        lambda s, x: torch.where(hidden, -math.inf, s),
        lambda s, x: torch.where(~hidden, s / 2.0, torch.full([], LOWEST)),
        lambda s, x: (s / 2.0).masked_fill(hidden, LOWEST) + positions,
        lambda s, x: s.masked_fill(hidden, -math.inf) / 4.0,
        lambda s, x: (s.flatten(0, 1) + positions).unflatten(0, (-1, HEADS))[..., 1:4],
        lambda s, x: s * x[:, None, :, :1].sigmoid(),
        lambda s, x: heads(x).sin() @ heads(x).mT + s,
    ]

    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [torch.softmax(way(heads(m.query(x)) @ heads(m.key(x)).mT, x), -1) for way in ways]

    assert_eliminates(of(forward), X, sites=len(ways))


def test_weights_may_be_returned() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        q, k, v = projected(m, x)
        weights = torch.softmax(q @ k.mT, -1)
        return [m.out(merged(weights @ v)), weights]

    assert_eliminates(of(forward), X, **FREE)


def test_a_large_bias_costs_digits_no_longer() -> None:
    module = attention("library")
    module.key.bias.data *= 1e4
    run = assert_eliminates(module, X)
    (after,) = run.program.run_named({"x": X}).values()
    before, exact = module(X), module.double()(X.double())
    assert (after - exact).abs().max() < 0.1 * (before - exact).abs().max()


def test_a_bias_packed_with_ones_of_zeros_is_removed() -> None:
    module = attention("packed")
    module.packed.bias.data[:WIDTH] = 0.0
    module.packed.bias.data[2 * WIDTH :] = 0.0
    run = assert_eliminates(module, X, **FREE)
    assert "packed.bias" not in run.program.tensors


def test_a_projection_called_twice_keeps_its_bias_for_the_other_call() -> None:
    module = of(lambda m, x: [library(m, x), torch.sin(m.key(x))])
    run = assert_rewrites(EliminateKeyBias(), module, (X,), before={}, after={})
    assert torch.equal(run.program.tensors["key.bias"], module.key.bias)


def test_keys_of_another_sequence_lose_their_bias() -> None:
    assert_eliminates(attention("crossed"), X, normal(2, 3, WIDTH, seed=1))


def test_the_shift_of_a_norm_that_became_a_bias_is_removed() -> None:
    names = ("query", "key", "value")
    parts: dict[str, Any] = {name: nn.Linear(WIDTH, WIDTH, bias=False) for name in names}
    module = randomised(Written(lambda m, x: library(m, m.norm(x)), norm=nn.LayerNorm(WIDTH), **parts))
    folded = run_passes(capture(module, (X,)), [FoldNormAffine()]).program
    assert "key.bias" in folded.tensors
    assert_eliminates(folded, X)


def test_two_attentions_of_a_block_are_two_sites() -> None:
    module = of(lambda m, x: library(m, library(m, x)) + merged(F.scaled_dot_product_attention(*projected(m, x))))
    assert_eliminates(module, X, sites=3)
