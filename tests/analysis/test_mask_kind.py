from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowopt.analysis.attention_sites import AttentionSite, attention_sites
from tests.analysis.attentions import HEADS, IDS, LENGTH, REAL, K, Q, V, attend, places, program_of
from tests.passes.programs import normal

LOWEST = torch.finfo(torch.float32).min
TABLE = normal(LENGTH, LENGTH, seed=7)


def site_of(function: Callable[..., Tensor], *more: Tensor, **options: object) -> AttentionSite:
    (site,) = attention_sites(program_of(function, *more, **options))  # type: ignore[arg-type]  # parts and options
    return site


def kind_of(function: Callable[..., Tensor], *more: Tensor, **options: object) -> tuple[str, bool, bool]:
    """Code, causal, padding."""
    site = site_of(function, *more, **options)
    return "" if site.refusal is None else site.refusal.code, site.shape.is_causal, site.has_padding


def causal(q: Tensor, k: Tensor) -> Tensor:
    return places(q, k) >= 0


def shown(real: Tensor) -> Tensor:
    return real[:, None, None, :].bool()


# What masks are.


def test_without_a_mask_all_is_seen() -> None:
    assert kind_of(lambda m, q, k, v: attend(q, k, v)) == ("", False, False)


def test_causal_by_flag() -> None:
    assert kind_of(lambda m, q, k, v: attend(q, k, v, is_causal=True)) == ("", True, False)


@pytest.mark.parametrize("is_free", [False, True])
def test_causal_by_a_mask_that_is_computed(is_free: bool) -> None:
    found = kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=causal(q, k)), is_free=is_free)
    assert found == ("", True, False)


def test_causal_by_a_stored_mask() -> None:
    mask = torch.ones(LENGTH, LENGTH).tril().log()
    assert kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=m.mask), mask=mask) == ("", True, False)


def test_a_stored_mask_that_shows_everything_hides_nothing() -> None:
    mask = torch.zeros(LENGTH, LENGTH)
    assert kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=m.mask), mask=mask) == ("", False, False)


@pytest.mark.parametrize("is_free", [False, True])
def test_padding(is_free: bool) -> None:
    found = kind_of(lambda m, q, k, v, real: attend(q, k, v, attn_mask=shown(real)), REAL, is_free=is_free)
    assert found == ("", False, True)


@pytest.mark.parametrize("is_free", [False, True])
def test_causal_and_padding(is_free: bool) -> None:
    found = kind_of(
        lambda m, q, k, v, real: attend(q, k, v, attn_mask=shown(real) & causal(q, k)), REAL, is_free=is_free
    )
    assert found == ("", True, True)


@pytest.mark.parametrize("lowest", [-1e4, -1e9, LOWEST, -torch.inf])
def test_padding_by_a_low_score(lowest: float) -> None:
    def masked(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=torch.zeros(()).masked_fill(~shown(real), lowest))

    assert kind_of(masked, REAL, is_free=True) == ("", False, True)


def test_padding_where_ones_stand_for_padding() -> None:
    found = kind_of(lambda m, q, k, v, padded: attend(q, k, v, attn_mask=~shown(padded)), REAL == 0, is_free=True)
    assert found == ("", False, True)


def test_padding_by_the_id_of_padding() -> None:
    found = kind_of(lambda m, q, k, v, ids: attend(q, k, v, attn_mask=shown(ids != 0)), IDS, is_free=True)
    assert found == ("", False, True)


def test_padding_by_an_additive_input() -> None:
    scores = (1.0 - REAL[:, None, None].float()) * LOWEST
    assert kind_of(lambda m, q, k, v, scores: attend(q, k, v, attn_mask=scores), scores) == ("", False, True)


def test_padding_of_keys_that_are_as_many_as_there_are_no_queries() -> None:
    found = kind_of(
        lambda m, q, k, v, real: attend(q, k, v, attn_mask=shown(real)), REAL, inputs=(normal(2, HEADS, 4, 8), K, V)
    )
    assert found == ("", False, True)


def test_queries_of_padding_may_see_anything() -> None:
    def unmasked(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        mask = shown(real) & causal(q, k)
        return attend(q, k, v, attn_mask=mask | ~mask.any(-1, keepdim=True))

    assert kind_of(unmasked, REAL, is_free=True) == ("", True, True)


# What they are not.


def test_a_sliding_window_is_arbitrary_and_is_told() -> None:
    site = site_of(lambda m, q, k, v: attend(q, k, v, attn_mask=causal(q, k) & (places(q, k) < 3)))
    assert site.refusal is not None
    assert (site.refusal.code, "a sliding window of 3 keys" in site.refusal.message) == ("arbitrary-mask", True)


def test_a_window_to_both_sides_is_arbitrary() -> None:
    site = site_of(lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k).abs() < 2))
    assert site.refusal is not None and "a sliding window of 2 keys" in site.refusal.message


def test_a_window_wider_than_the_captured_length_is_found() -> None:
    def windowed(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=causal(q, k) & (places(q, k) < 40))

    assert kind_of(windowed, is_free=True)[0] == "arbitrary-mask"
    # The model takes 30 tokens at most: the window never shows.
    assert kind_of(windowed, is_free=True, dims={"length": (1, 30)}) == ("", True, False)


def test_a_window_too_wide_to_try_is_refused_where_the_model_takes_as_many() -> None:
    def windowed(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=causal(q, k) & (places(q, k) < 32768))

    assert kind_of(windowed, is_free=True, dims={"length": (1, None)})[0] == "arbitrary-mask"


def test_blocks_are_arbitrary() -> None:
    def blocks(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        block = torch.arange(LENGTH) // 3
        return attend(q, k, v, attn_mask=block[:, None] == block)

    assert kind_of(blocks)[0] == "arbitrary-mask"


def test_every_query_seeing_itself_alone_is_arbitrary() -> None:
    assert kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k) == 0), is_free=True)[0] == "arbitrary-mask"


@pytest.mark.parametrize("width", [1, 3])
def test_a_window_beside_padding_is_arbitrary(width: int) -> None:
    def windowed(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=shown(real) & (places(q, k).abs() < width))

    assert kind_of(windowed, REAL, is_free=True)[0] == "arbitrary-mask"


def test_padding_of_inputs_that_are_given_without_any_is_padding() -> None:
    real = torch.ones_like(REAL)
    found = kind_of(lambda m, q, k, v, real: attend(q, k, v, attn_mask=shown(real)), real, is_free=True)
    assert found == ("", False, True)


def test_a_mask_of_all_pairs_that_the_user_gives_is_arbitrary() -> None:
    mask = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    assert kind_of(lambda m, q, k, v, mask: attend(q, k, v, attn_mask=mask), mask)[0] == "arbitrary-mask"


@pytest.mark.parametrize("is_added", [False, True])
def test_a_causal_mask_that_the_user_gives_is_told_as_an_input(is_added: bool) -> None:
    pairs = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    mask = torch.zeros(pairs.shape).masked_fill(~pairs, -1e9) if is_added else pairs
    refusal = site_of(lambda m, q, k, v, mask: attend(q, k, v, attn_mask=mask), mask).refusal
    assert refusal is not None
    wanted = "more is an input of its own for every query and key, causal in the example and anything at run time"
    assert (refusal.code, refusal.message) == ("arbitrary-mask", wanted)


def test_a_mask_that_hides_queries_too_is_arbitrary() -> None:
    def both(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=shown(real) & shown(real).mT)

    site = site_of(both, REAL)
    assert site.refusal is not None
    assert (site.refusal.code, "from the last query" in site.refusal.message) == ("arbitrary-mask", True)


def test_a_mask_that_depends_on_tokens_is_arbitrary() -> None:
    def same(m: object, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=(ids[:, :, None] >= ids[:, None])[:, None])

    assert kind_of(same, IDS)[0] == "arbitrary-mask"


def same(ids: Tensor) -> Tensor:
    return (ids[:, :, None] == ids[:, None])[:, None]


SEGMENTS = {
    "of zero and one": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2),
    "from one on": torch.tensor([[1, 1, 2, 2, 3, 3]] * 2),
    "all zero": torch.zeros(2, LENGTH, dtype=torch.long),
    "all one": torch.ones(2, LENGTH, dtype=torch.long),
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", SEGMENTS)
def test_packed_segments_are_no_padding(name: str, is_causal: bool) -> None:
    def packed(m: object, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=same(ids) & causal(q, k) if is_causal else same(ids))

    assert kind_of(packed, SEGMENTS[name], is_free=True)[0] == "arbitrary-mask"


def test_segments_beside_padding_of_zeros_are_no_padding() -> None:
    def packed(m: object, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        mask = same(ids) & shown(ids)
        return attend(q, k, v, attn_mask=mask | ~mask.any(-1, keepdim=True))

    assert kind_of(packed, REAL, is_free=True)[0] == "arbitrary-mask"


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("start", [0, 2])
def test_sequences_that_are_packed_by_a_token_are_no_padding(start: int, is_causal: bool) -> None:
    def packed(m: object, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        mask = same((ids == start).cumsum(1))
        return attend(q, k, v, attn_mask=mask & causal(q, k) if is_causal else mask)

    assert kind_of(packed, torch.arange(LENGTH).repeat(2, 1), is_free=True)[0] == "arbitrary-mask"


def test_segments_by_where_the_last_one_starts_are_no_padding() -> None:
    def packed(m: object, q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=same((torch.arange(q.shape[2]) >= start[:, None]).long()))

    assert kind_of(packed, torch.tensor([3, 4]), is_free=True)[0] == "arbitrary-mask"


def test_padding_by_lengths_is_padding() -> None:
    def padded(m: object, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=shown(torch.arange(q.shape[2]) < lengths[:, None]))

    assert kind_of(padded, torch.tensor([4, 6]), is_free=True) == ("", False, True)


@pytest.mark.parametrize("stored", [torch.bool, torch.float32, torch.int64])
def test_a_stored_band_that_is_wider_than_what_was_captured_is_found(stored: torch.dtype) -> None:
    behind = torch.arange(256)[:, None] - torch.arange(256)
    band = (behind >= 0) & (behind < 100)
    table = torch.where(band, 0.0, -torch.inf) if stored is torch.float32 else band.to(stored)

    def banded(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = m.band[: q.shape[2], : q.shape[2]]
        return attend(q, k, v, attn_mask=mask.bool() if stored is torch.int64 else mask)

    assert kind_of(banded, is_free=True, dims={"length": (2, 200)}, band=table)[0] == "arbitrary-mask"
    # The band never shows.
    assert kind_of(banded, is_free=True, dims={"length": (2, 90)}, band=table) == ("", True, False)


@pytest.mark.parametrize("spelling", ["//", ">>"])
def test_wide_blocks_are_found(spelling: str) -> None:
    def blocks(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(q.shape[2])
        block = places // 128 if spelling == "//" else places >> 7
        return attend(q, k, v, attn_mask=(block[:, None] == block) & causal(q, k))

    assert kind_of(blocks, is_free=True, dims={"length": (2, 200)})[0] == "arbitrary-mask"


def test_a_mask_of_stored_numbers_too_long_to_try_is_refused_where_the_model_takes_as_many() -> None:
    def by_table(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ids = m.ids[: q.shape[2]]
        return attend(q, k, v, attn_mask=ids[:, None] >= ids)

    ids = torch.arange(9000)
    assert kind_of(by_table, is_free=True, dims={"length": (2, 9000)}, ids=ids)[0] == "arbitrary-mask"
    assert kind_of(by_table, is_free=True, dims={"length": (2, 90)}, ids=ids) == ("", True, False)


def test_a_mask_that_depends_on_features_is_arbitrary() -> None:
    assert kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=(q @ k.mT) > 0))[0] == "arbitrary-mask"


def test_a_mask_that_differs_from_head_to_head_is_arbitrary() -> None:
    mask = torch.ones(HEADS, LENGTH, LENGTH, dtype=torch.bool)
    mask[1] = mask[1].tril()
    assert kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=m.mask), mask=mask)[0] == "arbitrary-mask"


@pytest.mark.parametrize("shift", [0, 2])
def test_causal_with_more_keys_than_queries_is_an_axis_mismatch(shift: int) -> None:
    queries = normal(2, HEADS, LENGTH - 2, 8)
    found = kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k) + shift >= 0), inputs=(queries, K, V))
    assert found[0] == "axis-mismatch"


def test_causal_by_flag_with_more_keys_than_queries_is_an_axis_mismatch() -> None:
    queries = normal(2, HEADS, LENGTH - 2, 8)
    assert kind_of(lambda m, q, k, v: attend(q, k, v, is_causal=True), inputs=(queries, K, V))[0] == "axis-mismatch"


SLOPES = 2.0 ** -torch.arange(1.0, HEADS + 1)


@pytest.mark.parametrize("is_causal", [False, True])
def test_alibi_is_linear_in_the_distance(is_causal: bool) -> None:
    def alibi(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = -SLOPES[:, None, None] * places(q, k).abs()
        return attend(q, k, v, attn_mask=bias.masked_fill(places(q, k) < 0, -torch.inf) if is_causal else bias)

    assert kind_of(alibi, is_free=True)[0] == "alibi"


def test_alibi_of_key_positions_alone_in_half_precision_is_alibi() -> None:
    def alibi(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, attn_mask=(SLOPES[:, None, None] * torch.arange(k.shape[2])).to(q.dtype))

    half = (Q.bfloat16(), K.bfloat16(), V.bfloat16())
    assert kind_of(alibi, inputs=half, is_free=True)[0] == "alibi"


def test_biases_out_of_a_trained_table_are_relative() -> None:
    def biased(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        table: Tensor = m.table  # type: ignore[attr-defined]  # a part
        return attend(q, k, v, attn_mask=table[places(q, k) + LENGTH].permute(2, 0, 1))

    assert kind_of(biased, table=normal(2 * LENGTH, HEADS, seed=3))[0] == "relative-bias"


def test_a_bias_that_is_computed_is_additive() -> None:
    found = kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k).float().square()))
    assert found[0] == "additive-bias"


def test_a_bias_out_of_features_is_additive() -> None:
    assert kind_of(lambda m, q, k, v: attend(q, k, v, attn_mask=q @ k.mT))[0] == "additive-bias"


def test_a_bias_beside_padding_is_additive() -> None:
    def biased(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        bias = places(q, k).float().square()
        return attend(q, k, v, attn_mask=bias.masked_fill(~shown(real), -torch.inf))

    assert kind_of(biased, REAL)[0] == "additive-bias"


def test_alibi_that_counts_real_tokens_alone_is_alibi() -> None:
    def counted(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        places = (real.cumsum(-1) - 1) * real
        bias = SLOPES[:, None, None] * places[:, None, None, :]
        return attend(q, k, v, attn_mask=bias.masked_fill(~shown(real), -torch.inf))

    assert kind_of(counted, REAL, is_free=True)[0] == "alibi"
