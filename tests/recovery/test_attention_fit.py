from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import flowopt
from flowopt.analysis.attention_sites import attention_sites
from flowopt.errors import UserError
from flowopt.ops.attention import AttentionShape, InPlaceOfSoftmax, LinearForm, MeanAttention, linearization
from flowopt.ops.attention.linear_form import State
from flowopt.program.program import Program
from flowopt.recovery.attention_fit import AttentionFit, measure_attention
from tests.passes.programs import normal

LENGTH = 7


class Halved(LinearForm):
    """Half of the first value, for every query: a stand-in whose error is easy to write down."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.shape, self.form, self.chunk = shape, "parallel", 64

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        return 0.5 * value[:, :, :1].expand(*query.shape[:3], -1)

    def initial_state(self, like: Tensor) -> State:
        return ()

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        return value, state


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = None if mask is None else mask[:, None, None, :].bool()
        return attend(q, k, v, attn_mask=seen, **self.options)


def inputs(*, key_heads: int = 4, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    sizes = {"q": (2, 4, length, 6), "k": (2, key_heads, length, 6), "v": (2, key_heads, length, 5)}
    return {name: normal(*size, dtype=torch.float64, seed=seed + at) for at, (name, size) in enumerate(sizes.items())}


def captured(given: dict[str, Tensor], **options: Any) -> Program:
    return flowopt.capture(Attention(**options).eval(), (), given)


def fit_of(program: Program, *batches: dict[str, Tensor], padding: str | None = None) -> AttentionFit:
    (site,) = attention_sites(program)
    leaves = {site.name: InPlaceOfSoftmax(Halved(site.shape))}
    return measure_attention(program, [site], leaves, batches, padding=padding)[site.name]


def expected(given: dict[str, Tensor], seen: Tensor, real: Tensor) -> tuple[float, float, float]:
    """Both errors and the entropy by the matrix of all weights; seen (B, L, S), real (B, L)."""
    q, k, v = (given[name] for name in "qkv")
    k, v = (t.repeat_interleave(4 // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT / 6**0.5).masked_fill(~seen[:, None], -torch.inf)
    weights = scores.softmax(-1)
    output, even = weights @ v, seen[:, None].double() / seen[:, None].sum(-1, keepdim=True)
    half = 0.5 * v[:, :, :1].expand_as(output)
    kept = real[:, None, :, None].double()

    def error(found: Tensor) -> float:
        return float((((found - output) * kept).square().sum() / (output * kept).square().sum()).sqrt())

    logs = torch.where(weights > 0, weights, 1.0).log()
    counts = seen.double().sum(-1)
    rows = -(weights * logs).sum(-1) / counts.log()[:, None]
    counted = (real & (counts > 1))[:, None].expand_as(rows)
    return error(half), error(even @ v), float(rows[counted].mean())


def check(found: AttentionFit, wanted: tuple[float, float, float]) -> None:
    # Sums of a few hundred products in float64, in another order.
    assert (found.zero_shot_error, found.mean_error, found.entropy) == pytest.approx(wanted, rel=1e-10)


ALL = torch.ones(2, LENGTH, LENGTH, dtype=torch.bool)


def test_errors_and_entropy_are_those_of_the_matrix_of_all_weights() -> None:
    given = inputs()
    found = fit_of(captured(given), given)
    check(found, expected(given, ALL, ALL[:, 0]))
    assert found.queries == 2 * LENGTH


def test_batches_count_together() -> None:
    first, second = inputs(), inputs(seed=5)
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    found = fit_of(captured(first), first, second)
    check(found, expected(both, ALL.repeat(2, 1, 1), ALL.repeat(2, 1, 1)[:, 0]))


def test_causal_rows_are_compared_with_the_keys_that_they_see() -> None:
    given = inputs()
    check(fit_of(captured(given, is_causal=True), given), expected(given, ALL.tril(), ALL[:, 0]))


def test_keys_of_fewer_heads_are_repeated() -> None:
    given = inputs(key_heads=2)
    check(fit_of(captured(given, enable_gqa=True), given), expected(given, ALL, ALL[:, 0]))


def test_padding_counts_neither_as_key_nor_as_query() -> None:
    mask = torch.tensor([[1] * LENGTH, [0, 0] + [1] * 3 + [0] * 2])
    given = inputs() | {"mask": mask}
    found = fit_of(captured(given), given)
    check(found, expected(given, ALL & mask[:, None].bool(), mask.bool()))
    assert found.queries == LENGTH + 3


def test_padding_of_other_tokens_hides_no_query() -> None:
    mask = torch.tensor([[1] * LENGTH, [1] * 3 + [0] * 4])
    given = inputs() | {"mask": mask}
    given["q"] = given["q"][:, :, :5]
    program = captured(given)
    check(fit_of(program, given), expected(given, ALL[:, :5] & mask[:, None].bool(), ALL[:, 0, :5]))
    (site,) = attention_sites(program)
    leaves = {site.name: InPlaceOfSoftmax(linearization("flow")(site.shape)).double()}
    found = measure_attention(program, [site], leaves, [given])[site.name]
    assert found.queries == 10 and found.zero_shot_error < 1.0


def test_what_stands_at_padding_has_no_part() -> None:
    mask = torch.tensor([[1] * LENGTH, [1] * 3 + [0] * 4])
    given = inputs() | {"mask": mask}
    changed = {name: value.clone() for name, value in given.items()}
    for name in "qkv":
        changed[name][1, :, 3:] = 1e3
    program = captured(given)
    assert fit_of(program, changed) == fit_of(program, given)


def test_queries_of_a_model_without_a_mask_are_known_by_the_padding_input() -> None:
    class Unmasked(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return attend(q, k, v), 2 * tokens

    tokens = torch.tensor([[1] * LENGTH, [1] * 4 + [0] * 3])
    given = inputs() | {"tokens": tokens}
    found = fit_of(flowopt.capture(Unmasked().eval(), (), given), given, padding="tokens")
    check(found, expected({n: given[n] for n in "qkv"}, ALL, tokens.bool()))


def test_uniform_attention_has_entropy_one_and_is_the_mean_of_the_values() -> None:
    given = inputs()
    given["q"] = torch.zeros_like(given["q"])
    found = fit_of(captured(given), given)
    # Logarithms of 7 weights of 1/7, summed in float64.
    assert found.entropy == pytest.approx(1.0, abs=1e-12)
    assert found.mean_error < 1e-12


def test_a_choice_of_one_key_has_entropy_zero_and_the_mean_is_far_from_it() -> None:
    given = inputs()
    given["k"] = torch.eye(LENGTH, 6, dtype=torch.float64).expand(2, 4, -1, -1)
    given["q"] = 200.0 * torch.eye(6, dtype=torch.float64)[torch.arange(LENGTH) % 6].expand(2, 4, -1, -1)
    found = fit_of(captured(given), given)
    assert found.entropy < 1e-12
    assert found.mean_error > 0.5


def test_a_mean_in_its_place_has_the_error_of_the_mean() -> None:
    given = inputs()
    program = captured(given, is_causal=True)
    (site,) = attention_sites(program)
    leaves = {site.name: InPlaceOfSoftmax(MeanAttention(site.shape))}
    found = measure_attention(program, [site], leaves, [given])[site.name]
    assert found.zero_shot_error == found.mean_error > 0.1


class Twice(nn.Module):
    """Two attentions that share their keys, which are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", normal(1, 4, 5, 6, dtype=torch.float64))

    def forward(self, q: Tensor) -> Tensor:
        keys = self.get_buffer("keys").expand(q.shape[0], -1, -1, -1)
        return attend(attend(q, keys, keys), keys, q[:, :, :5])


def test_every_site_with_a_stand_in_is_measured() -> None:
    q = normal(2, 4, LENGTH, 6, dtype=torch.float64)
    program = flowopt.capture(Twice().eval(), (q,))
    sites = attention_sites(program)
    leaves = {site.name: InPlaceOfSoftmax(Halved(site.shape)) for site in sites}
    said: list[str] = []
    both = measure_attention(program, sites, leaves, [{"q": q}], on_progress=said.append)
    assert list(both) == [site.name for site in sites]
    assert said == ["calibration batch 1"]
    last = sites[1].name
    assert measure_attention(program, sites, {last: leaves[last]}, [{"q": q}]) == {last: both[last]}


def test_no_batch_and_no_real_query_are_told() -> None:
    given = inputs() | {"mask": torch.ones(2, LENGTH, dtype=torch.int64)}
    program = captured(given)
    with pytest.raises(UserError, match="no calibration batch"):
        fit_of(program)
    with pytest.raises(UserError, match="no calibration batch has a real query"):
        fit_of(program, given | {"mask": torch.zeros(2, LENGTH, dtype=torch.int64)})
