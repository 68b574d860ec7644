"""Which attentions become linear, out of made-up measurements."""

import dataclasses
import math
from typing import Any

import pytest

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.measuring.attention_crossover import Crossover
from flowopt.ops.attention import AttentionShape
from flowopt.recovery.attention_fit import AttentionFit
from flowopt.report.attention_record import AttentionRecord
from flowopt.report.sites import Refusal
from flowopt.workflows.adapting.attention_speed import AttentionSpeed
from flowopt.workflows.adapting.decided_attention import Measurements, decided_attention, judged_length
from flowopt.workflows.adapting.linear_choice import LinearChoice

SHAPE = AttentionShape(heads=4, head_dim=8, value_dim=8, is_causal=True, scale=0.5)
ENTROPIES = (0.9, 0.2, 0.7, 0.4, 0.8)
EFFECTS = (0.3, 0.1, 0.5, 0.2, 0.4)
# Softmax with the square of the length, the stand-in with the length: they meet at 512.
SPEED = AttentionSpeed(Crossover((256, 1024), (1.0, 16.0), (2.0, 8.0)))
NOT_MEASURED = AttentionSpeed(None, "there is no device")


def site(position: int, **changed: Any) -> AttentionSite:
    made = AttentionSite(
        f"a{position}", position, f"layer.{position}", "q", "k", "v", None, False, SHAPE, 2, 1024, 1024, None
    )
    return dataclasses.replace(made, **changed)


SITES = tuple(map(site, range(5)))
ALIBI = site(1, refusal=Refusal("a1", "layer.1", "", "alibi", "scores get a slope", "add"))


def decided(sites: tuple[AttentionSite, ...] = SITES, **changed: Any) -> tuple[AttentionRecord, ...]:
    speed = changed.pop("speed", SPEED)
    wanted = changed.pop("wanted", sites)
    entropies = changed.pop("entropies", ENTROPIES)
    names = [one.name for one in wanted if one.refusal is None]
    measured = Measurements(
        {name: AttentionFit(0.5, 0.6, entropies[int(name[1:])], 9) for name in names},
        {name: EFFECTS[int(name[1:])] for name in names} if changed.get("keep_by") == "effect" else {},
        dict.fromkeys(names, speed),
    )
    return decided_attention(sites, wanted, LinearChoice("elu", **changed), measured, "cpu")


def decisions(records: tuple[AttentionRecord, ...]) -> list[str]:
    return [record.decision for record in records]


def test_above_the_crossover_every_layer_is_replaced() -> None:
    found = decided()
    assert decisions(found) == ["swapped"] * 5
    first = found[0]
    assert (first.length, first.reason, first.is_extrapolated) == (1024, "", False)
    assert (first.crossover, first.softmax_ms, first.linear_ms) == pytest.approx((512.0, 16.0, 8.0))
    assert (first.zero_shot_error, first.mean_error, first.entropy, first.effect) == (0.5, 0.6, 0.9, None)
    assert (first.heads, first.key_heads, first.head_dim, first.is_causal, first.module) == (4, 2, 8, True, "layer.0")


def test_below_the_crossover_every_layer_is_refused_and_told_from_where_on_it_is_faster() -> None:
    found = decided(length=300)
    assert decisions(found) == ["refused"] * 5
    assert found[0].reason == (
        "below-crossover: at length 300 on cpu the stand-in takes 2.34 ms, softmax 1.37 ms; "
        "it is faster from about 512 on"
    )


def test_each_layer_is_judged_at_its_own_length() -> None:
    short = site(2, query_length=300, key_length=300)
    found = decided((*SITES[:2], short, *SITES[3:]))
    assert decisions(found) == ["swapped", "swapped", "refused", "swapped", "swapped"]


def test_force_replaces_what_is_slower() -> None:
    found = decided(length=300, force=True)
    assert decisions(found) == ["swapped"] * 5
    assert found[0].linear_ms is not None and found[0].softmax_ms is not None
    assert found[0].linear_ms > found[0].softmax_ms


def test_a_stand_in_that_is_never_faster_is_refused_up_to_where_it_was_timed() -> None:
    speed = AttentionSpeed(Crossover((256, 1024), (1.0, 4.0), (2.0, 8.0)))
    found = decided(speed=speed)
    assert found[0].crossover is None
    assert found[0].reason.endswith("it is faster at no length up to 1024")


def test_equal_times_are_no_gain() -> None:
    speed = AttentionSpeed(Crossover((256, 1024), (1.0, 4.0), (1.0, 4.0)))
    assert decisions(decided(speed=speed)) == ["refused"] * 5


def test_a_length_beyond_those_timed_is_marked() -> None:
    found = decided(length=4096)
    assert found[0].is_extrapolated
    assert (found[0].softmax_ms, found[0].linear_ms) == pytest.approx((256.0, 32.0))
    refused = decided(length=100)[0]
    assert refused.is_extrapolated and ", extrapolated; it is faster from about 512 on" in refused.reason


def test_where_speed_was_not_measured_it_refuses_nothing() -> None:
    found = decided(length=2, speed=NOT_MEASURED)
    assert decisions(found) == ["swapped"] * 5
    assert (found[0].crossover, found[0].softmax_ms, found[0].linear_ms) == (None, None, None)


def test_what_cannot_become_linear_is_refused_by_its_own_code_whatever_is_forced() -> None:
    found = decided((SITES[0], ALIBI, *SITES[2:]), force=True)
    assert decisions(found) == ["swapped", "refused", "swapped", "swapped", "swapped"]
    assert found[1].reason == "alibi: scores get a slope"
    assert (found[1].zero_shot_error, found[1].entropy, found[1].linear_ms) == (None, None, None)


def test_what_was_not_asked_for_is_left() -> None:
    found = decided((SITES[0], ALIBI, *SITES[2:]), wanted=(SITES[2], SITES[4]))
    assert decisions(found) == ["left", "left", "swapped", "left", "swapped"]
    assert found[1].reason == ""


@pytest.mark.parametrize(
    ("share", "kept"), [(0.0, []), (0.01, [1]), (0.2, [1]), (0.25, [1, 3]), (0.6, [1, 2, 3]), (0.99, [0, 1, 2, 3, 4])]
)
def test_layers_of_the_lowest_entropy_keep_softmax(share: float, kept: list[int]) -> None:
    found = decided(keep_softmax=share)
    assert [record.position for record in found if record.decision == "kept"] == kept
    assert [record.position for record in found if record.decision == "swapped"] == [
        n for n in range(5) if n not in kept
    ]


def test_a_kept_layer_says_why() -> None:
    reason = decided(keep_softmax=0.25)[1].reason
    assert reason == "low-entropy: 0.200 of 1, among the 2 of 5 to keep softmax"


def test_layers_of_the_largest_effect_keep_softmax() -> None:
    found = decided(keep_softmax=0.4, keep_by="effect")
    assert decisions(found) == ["swapped", "swapped", "kept", "swapped", "kept"]
    assert [record.effect for record in found] == list(EFFECTS)
    assert found[2].reason == "effect-on-outputs: 0.5 where it alone is replaced, among the 2 of 5 to keep softmax"


def test_the_share_is_of_what_could_be_replaced() -> None:
    short = site(3, query_length=300, key_length=300)
    found = decided((SITES[0], ALIBI, SITES[2], short, SITES[4]), keep_softmax=0.34)
    # Of three: those of entropy 0.9, 0.7 and 0.8.
    assert decisions(found) == [
        "kept" if n == 2 else d for n, d in enumerate(["swapped", "refused", "", "refused", "kept"])
    ]


def test_an_unknown_entropy_keeps_softmax_first() -> None:
    found = decided(keep_softmax=0.2, entropies=(0.9, 0.2, 0.7, 0.4, math.nan))
    assert decisions(found)[4] == "kept"


def test_cross_attention_is_judged_at_the_harmonic_mean_of_its_lengths() -> None:
    cross = site(0, query_length=100, key_length=300)
    assert judged_length(cross, LinearChoice("elu")) == 150
    assert judged_length(cross, LinearChoice("elu", length=64)) == 64
