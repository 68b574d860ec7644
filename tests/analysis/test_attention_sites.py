from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.attention_sites import AttentionSite, attention_site, attention_sites
from flowopt.ops.attention import AttentionShape
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.analysis.attentions import HEADS, LENGTH, REAL, WIDTH, K, Q, V, attend, places, program_of, written
from tests.passes.programs import Written, decomposed, normal
from tests.zoo.architectures import ARCHITECTURES


def only(program: Program) -> AttentionSite:
    (site,) = attention_sites(program)
    return site


def code_of(program: Program) -> str:
    site = only(program)
    return "" if site.refusal is None else site.refusal.code


# Calls.


def test_a_call_is_a_site() -> None:
    inputs = (normal(2, 4, 6, 8), normal(2, 4, 5, 8, seed=1), normal(2, 4, 5, 3, seed=2))
    site = only(program_of(lambda m, q, k, v: attend(q, k, v), inputs=inputs))
    assert (site.name, site.position) == ("scaled_dot_product_attention", 0)
    assert (site.query, site.key, site.value, site.mask) == ("q", "k", "v", None)
    wanted = AttentionShape(heads=4, head_dim=8, value_dim=3, is_causal=False, scale=8**-0.5, is_cross=True)
    assert site.shape == wanted
    assert (site.key_heads, site.query_length, site.key_length, site.refusal) == (4, 6, 5, None)


def test_a_scale_that_is_given_counts() -> None:
    assert only(program_of(lambda m, q, k, v: attend(q, k, v, scale=0.3))).shape.scale == 0.3


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_scale_that_is_not_positive_is_of_an_unsupported_spelling(scale: float) -> None:
    assert code_of(program_of(lambda m, q, k, v: attend(q, k, v, scale=scale))) == "unsupported-spelling"


def test_free_lengths_are_told_at_their_captured_sizes() -> None:
    site = only(program_of(lambda m, q, k, v: attend(q, k, v), is_free=True))
    assert (site.query_length, site.key_length, site.refusal) == (LENGTH, LENGTH, None)


def test_keys_of_fewer_heads_are_told() -> None:
    inputs = (Q, K[:, :2], V[:, :2])
    site = only(program_of(lambda m, q, k, v: attend(q, k, v, enable_gqa=True), inputs=inputs))
    assert (site.shape.heads, site.key_heads, site.refusal) == (HEADS, 2, None)


def test_keys_that_are_repeated_beforehand_have_the_heads_of_the_queries() -> None:
    def repeated(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, *(t.repeat_interleave(2, 1) for t in (k, v)))

    site = only(program_of(repeated, inputs=(Q, K[:, :2], V[:, :2])))
    assert (site.shape.heads, site.key_heads, site.refusal) == (HEADS, HEADS, None)


def test_what_is_before_an_attention_does_not_matter() -> None:
    def rotated(m: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angles = torch.arange(LENGTH)[:, None] * torch.arange(1.0, WIDTH + 1)
        return attend(*(t * angles.cos() + t.roll(1, -1) * angles.sin() for t in (q, k)), v, is_causal=True)

    site = only(program_of(rotated))
    assert (site.refusal, site.shape.is_causal) == (None, True)


def test_sites_are_numbered_in_graph_order_and_know_their_modules() -> None:
    layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))

    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = layer(x, x, x, need_weights=False)[0]
        return x

    program = capture(Written(forward, layers=layers).eval(), (normal(2, 5, WIDTH),))
    found = attention_sites(program)
    assert [(site.position, site.module, site.refusal) for site in found] == [
        (0, "layers.0", None),
        (1, "layers.1", None),
    ]
    assert attention_site(program, program.node(found[1].name)) == found[1]
    assert attention_site(program, program.node("x")) is None


def test_a_refusal_names_its_site_and_what_stands_in_the_way() -> None:
    refusal = only(program_of(lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k) == 0))).refusal
    assert refusal is not None
    assert (refusal.site, refusal.code) == ("scaled_dot_product_attention", "arbitrary-mask")
    assert refusal.source.startswith("analysis/attentions.py:")
    assert refusal.message == "eq is a sliding window of 1 keys"


def test_dropout_is_train_mode() -> None:
    assert code_of(program_of(lambda m, q, k, v: attend(q, k, v, dropout_p=0.5))) == "train-mode"


def test_attention_without_heads_is_of_an_unsupported_spelling() -> None:
    flat = (Q[:, 0], K[:, 0], V[:, 0])
    assert code_of(program_of(lambda m, q, k, v: attend(q, k, v), inputs=flat)) == "unsupported-spelling"


def test_a_free_number_of_features_is_a_dynamic_shape() -> None:
    class Wide(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, scale=1.0)

    free = {name: {3: "width"} for name in "qkv"}
    assert code_of(capture(Wide().eval(), (Q, K, V), dynamic=free)) == "dynamic-shape"


def test_a_missing_shape_is_told() -> None:
    program = program_of(lambda m, q, k, v: attend(q.tanh(), k, v)).copy()
    del program.node("tanh").meta["val"]
    assert code_of(program) == "missing-metadata"


# Attention that is written out.


def plain(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * WIDTH**-0.5


TABLE = normal(HEADS, LENGTH, LENGTH, seed=7)
SINKS = normal(1, HEADS, 1, 1, seed=8)
SLOPES = 2.0 ** -torch.arange(1.0, HEADS + 1)[:, None, None]


def with_sinks(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.cat([plain(q, k), m.sinks.expand(q.shape[0], -1, q.shape[2], -1)], -1)
    return (scores - scores.max(-1, keepdim=True).values).softmax(-1)[..., :-1] @ v


WRITTEN: dict[str, tuple[Callable[..., Tensor], dict[str, Any], str]] = {
    "plain": (lambda m, q, k, v: written(plain(q, k), v), {}, "attention-not-recognized"),
    "causal": (
        lambda m, q, k, v: written(plain(q, k).masked_fill(places(q, k) < 0, -torch.inf), v),
        {},
        "attention-not-recognized",
    ),
    "causal by choice": (
        lambda m, q, k, v: written(torch.where(places(q, k) >= 0, plain(q, k), -1e9), v),
        {},
        "attention-not-recognized",
    ),
    "through bmm": (
        lambda m, q, k, v: torch.bmm(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)),
        {},
        "attention-not-recognized",
    ),
    "soft cap": (lambda m, q, k, v: written(30 * torch.tanh(plain(q, k) / 30), v), {}, "soft-cap"),
    "sinks": (with_sinks, {"sinks": SINKS}, "attention-sinks"),
    "alibi": (lambda m, q, k, v: written(plain(q, k) - SLOPES * places(q, k).abs(), v), {}, "alibi"),
    "table": (lambda m, q, k, v: written(plain(q, k) + m.table, v), {"table": TABLE}, "relative-bias"),
    "bias": (lambda m, q, k, v: written(plain(q, k) + places(q, k) ** 2, v), {}, "additive-bias"),
    "window": (
        lambda m, q, k, v: written(plain(q, k).masked_fill(places(q, k).abs() > 2, -torch.inf), v),
        {},
        "arbitrary-mask",
    ),
    "window by choice": (
        lambda m, q, k, v: written(torch.where(places(q, k).abs() > 2, -1e9, plain(q, k)), v),
        {},
        "arbitrary-mask",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_attention_is_refused_with_what_its_scores_show(name: str) -> None:
    function, parts, code = WRITTEN[name]
    assert code_of(program_of(function, **parts)) == code


def test_padding_is_nothing_that_written_scores_are_refused_for() -> None:
    def padded(m: object, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        return written(plain(q, k).masked_fill(real[:, None, None] == 0, -torch.inf), v)

    assert code_of(program_of(padded, REAL, is_free=True)) == "attention-not-recognized"


def test_written_attention_names_what_it_is_made_of() -> None:
    site = only(program_of(WRITTEN["plain"][0]))
    assert (site.name, site.query, site.key, site.value) == ("matmul_1", "q", "k", "v")
    assert (site.query_length, site.key_length, site.shape.heads) == (LENGTH, LENGTH, HEADS)


def test_a_call_that_an_archive_has_decomposed_is_written_out() -> None:
    class Flat(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v)

    assert code_of(decomposed(Flat().eval(), Q, K, V)) == "attention-not-recognized"


def test_a_softmax_that_weighs_no_values_is_no_attention() -> None:
    def gated(m: Any, x: Tensor) -> Tensor:
        return x.softmax(-1) @ m.table

    program = capture(Written(gated, table=normal(WIDTH, 3)).eval(), (normal(2, WIDTH),))
    assert attention_sites(program) == ()


# Architectures: codes of refused attentions (empty: none), causal or not, padding or not.
KNOWN: dict[str, set[tuple[str, bool, bool]]] = {
    "llama": {("", True, True)},
    "bert": {("", False, True)},
    "bart": {("", False, True), ("", True, False)},
    "clip-text": {("", True, True)},
    "vit": {("", False, False)},
    "t5": {("relative-bias", False, False)},
    "swin": {("relative-bias", False, False)},
    "siglip-vision": {("", False, False), ("attention-not-recognized", False, False)},
    "flux": {("", False, False)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_attentions_of_architectures_are_what_they_are(name: str) -> None:
    model = ARCHITECTURES[name]()
    program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    found = {
        ("" if site.refusal is None else site.refusal.code, site.shape.is_causal, site.has_padding)
        for site in attention_sites(program)
    }
    assert found == KNOWN[name]
