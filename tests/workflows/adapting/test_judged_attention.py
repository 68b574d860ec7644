"""The judge on models small enough to be judged in a second; times are made up."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from flowopt.errors import UserError
from flowopt.measuring.attention_crossover import Crossover
from flowopt.ops.attention import AttentionShape, MeanAttention
from flowopt.program.program import Program
from flowopt.recovery.data.open_data import open_data
from flowopt.workflows.adapting import judged_attention as module
from flowopt.workflows.adapting import linear_choice
from flowopt.workflows.adapting.attention_speed import AttentionSpeed
from flowopt.workflows.adapting.judged_attention import JudgedAttention, judged_attention
from flowopt.workflows.adapting.linear_choice import LinearChoice
from tests.workflows.adapting.tiny import (
    HEADS,
    TOKENS,
    WIDTH,
    captured,
    patches,
    post_norm_program,
    pre_norm_program,
    texts,
)

# They meet at 4 tokens.
FASTER = AttentionSpeed(Crossover((2, 8), (1.0, 16.0), (2.0, 8.0)))


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked to be timed."""
    asked: list[dict[str, Any]] = []

    def speed(_: Any, shape: AttentionShape, **given: Any) -> AttentionSpeed:
        asked.append({"shape": shape} | given)
        return FASTER

    monkeypatch.setattr(module, "attention_speed", speed)
    return asked


def judged(program: Program, arrays: dict[str, Tensor], padding: str = "auto", **choice: Any) -> JudgedAttention:
    given: dict[str, Any] = {"to": "elu", "calibration": 2} | choice
    return judged_attention(
        program,
        open_data(arrays, program.interface, batch_size=4, held_out=0.25),
        LinearChoice(**given),
        padding=padding,
        target="cpu",
        arch=None,
        outputs=[output.name for output in program.outputs],
        seed=0,
        on_progress=lambda _: None,
    )


def test_every_attention_is_measured_timed_and_chosen(timed: list[dict[str, Any]]) -> None:
    found = judged(pre_norm_program(), patches(16, seed=1))
    assert [record.decision for record in found.records] == ["swapped", "swapped"]
    assert [record.module for record in found.records] == ["blocks.0", "blocks.1"]
    assert found.chosen == found.sites and found.padding is None and found.notes == ()
    assert list(found.leaves) == [site.name for site in found.sites]
    for record in found.records:
        assert (record.length, record.heads) == (TOKENS, HEADS)
        assert record.crossover == pytest.approx(4.0)
        assert record.mean_error is not None and 0 < record.mean_error < 1
        assert record.entropy is not None and 0.5 < record.entropy < 1
        assert record.zero_shot_error is not None and record.effect is None
    # Both are of one shape: timed once.
    (asked,) = timed
    assert asked["shape"] == AttentionShape(HEADS, WIDTH // HEADS, WIDTH // HEADS, False, (WIDTH // HEADS) ** -0.5)
    assert (asked["target"], asked["dtype"], asked["key_heads"]) == ("cpu", torch.float32, HEADS)
    assert TOKENS in asked["lengths"] and 4096 in asked["lengths"]


def test_the_prepared_model_computes_the_same_function() -> None:
    program = post_norm_program()
    found = judged(program, texts(16, seed=1))
    given = texts(8, seed=2)
    (ours,), (theirs,) = found.program.run_named(given).values(), program.run_named(given).values()
    # Rounding of another order in float32.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_padding_is_found_by_its_mask() -> None:
    found = judged(post_norm_program(), texts(16, seed=1))
    assert found.padding == "attention_mask"
    assert [site.has_padding for site in found.sites] == [True, True]
    assert [record.decision for record in found.records] == ["swapped", "swapped"]


def test_a_length_below_the_crossover_refuses_and_names_the_nearest() -> None:
    with pytest.raises(UserError, match="none of 2 attentions can become linear") as caught:
        judged(pre_norm_program(), patches(16, seed=1), length=3)
    assert caught.value.why is not None and caught.value.why.startswith("blocks.0 comes nearest: below-crossover:")
    assert "--force" in caught.value.hint
    dry = judged(pre_norm_program(), patches(16, seed=1), length=3, dry_run=True)
    assert [record.decision for record in dry.records] == ["refused", "refused"] and dry.chosen == ()
    forced = judged(pre_norm_program(), patches(16, seed=1), length=3, force=True)
    assert [record.decision for record in forced.records] == ["swapped", "swapped"]


def test_layers_are_chosen_by_position_and_path() -> None:
    by_position = judged(pre_norm_program(), patches(16, seed=1), layers="1")
    by_path = judged(pre_norm_program(), patches(16, seed=1), layers="blocks.1*, 1")
    for found in (by_position, by_path):
        assert [record.decision for record in found.records] == ["left", "swapped"]
        assert list(found.leaves) == [found.sites[1].name] == [site.name for site in found.chosen]
    with pytest.raises(UserError, match="'blocks.2' names no attention"):
        judged(pre_norm_program(), patches(16, seed=1), layers="blocks.2")


def test_a_share_keeps_softmax_by_entropy_or_by_effect() -> None:
    by_entropy = judged(pre_norm_program(), patches(16, seed=1), keep_softmax=0.25)
    kept = [record for record in by_entropy.records if record.decision == "kept"]
    assert [record.entropy for record in kept] == [min(record.entropy or 1.0 for record in by_entropy.records)]
    by_effect = judged(pre_norm_program(), patches(16, seed=1), keep_softmax=0.25, keep_by="effect")
    kept = [record for record in by_effect.records if record.decision == "kept"]
    assert [record.effect for record in kept] == [max(record.effect or 0.0 for record in by_effect.records)]
    assert all(record.effect for record in by_effect.records)


def drawn(shape: AttentionShape) -> MeanAttention:
    made = MeanAttention(shape)
    made.register_parameter("drawn", nn.Parameter(torch.rand(3)))
    return made


def test_what_stand_ins_draw_follows_from_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_choice, "linearization", lambda _: drawn)
    weights: list[Tensor] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        found = judged(pre_norm_program(), patches(16, seed=1))
        assert torch.equal(state, torch.random.get_rng_state())
        weights += [parameter for leaf in found.leaves.values() for parameter in leaf.parameters()]
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


def test_speed_that_was_not_measured_is_a_note_and_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "attention_speed", lambda *_, **__: AttentionSpeed(None, "there is no device"))
    found = judged(pre_norm_program(), patches(16, seed=1), length=2)
    assert [record.decision for record in found.records] == ["swapped", "swapped"]
    assert found.notes == ("speed was not measured on cpu, and refuses nothing: there is no device",)


class Biased(nn.Module):
    """Attention with a bias for each distance, then one without."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.bias = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        for bias in (self.bias, None):
            query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            x = x + scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        return x


@cache
def biased() -> Program:
    given = {"x": torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))}
    free = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 64)}}
    return captured({"module": Biased().eval(), "kwargs": given} | free)


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(16, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))}


def test_what_cannot_become_linear_is_refused_and_not_measured() -> None:
    found = judged(biased(), inputs())
    assert [record.decision for record in found.records] == ["refused", "swapped"]
    refusal = found.sites[0].refusal
    assert refusal is not None and found.records[0].reason == f"{refusal.code}: {refusal.message}"
    assert found.records[0].zero_shot_error is None
    with pytest.raises(UserError, match="none of 1 attentions can become linear"):
        judged(biased(), inputs(), layers="0", force=True)


class Cross(nn.Module):
    """Attention of all tokens to the first ones."""

    def forward(self, x: Tensor) -> Tensor:
        query = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key = query[:, :, :3]
        return scaled_dot_product_attention(query, key, key.flip(-1)).transpose(1, 2).flatten(2)


@cache
def cross() -> Program:
    free = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 64)}}
    return captured({"module": Cross().eval(), "kwargs": {"x": inputs()["x"][:3]}} | free)


def test_cross_attention_is_refused_to_stand_ins_for_self_attention_alone() -> None:
    found = judged(cross(), inputs(), to="hybrid", dry_run=True)
    said = "axis-mismatch: hybrid is for self-attention, and here 5 queries see 3 keys of other tokens"
    assert found.records[0].reason == said
    assert found.sites[0].refusal is not None and not found.leaves
    (record,) = judged(cross(), inputs(), to="elu", force=True).records
    # 2 * 5 * 3 / (5 + 3), rounded to a whole number.
    assert (record.decision, record.length) == ("swapped", 4)


class Tied(nn.Module):
    """Attention to as many other tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.q(x), self.k(x.flip(1))))
        return scaled_dot_product_attention(query, key, key).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("to", ["hybrid", "chunk-hybrid", "combiner"])
def test_cross_attention_of_equal_lengths_is_refused_to_them_too(to: str) -> None:
    x = inputs()["x"]
    free = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 64)}}
    program = captured({"module": Tied(x.shape[-1]).eval(), "kwargs": {"x": x[:3]}} | free)
    found = judged(program, inputs(), to=to, dry_run=True)
    assert (found.records[0].reason or "").startswith(f"axis-mismatch: {to} is for self-attention")


def test_a_model_without_attention_is_told() -> None:
    free = {"dynamic": {"input": {0: "batch"}}, "dims": {"batch": (1, 64)}}
    program = captured({"module": nn.Linear(WIDTH, 4).eval(), "kwargs": {"input": torch.zeros(3, WIDTH)}} | free)
    with pytest.raises(UserError, match="no softmax attention"):
        judged(program, {"input": torch.randn(9, WIDTH)})


def test_a_wrong_choice_is_told_before_anything_is_computed() -> None:
    with pytest.raises(UserError, match="is no linear attention"):
        judged(pre_norm_program(), patches(16, seed=1), to="fast")
