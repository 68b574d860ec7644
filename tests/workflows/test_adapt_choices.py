"""Which norms ``flowopt.adapt`` replaces, and with what."""

from pathlib import Path
from typing import Any

import pytest

import flowopt
from flowopt.errors import UserError
from flowopt.ir.text import operator_census
from tests.workflows.adapting.tiny import (
    texts,
)
from tests.workflows.adapting.tiny_runs import NOTHING, adapted, tagger


def decisions(**changed: Any) -> list[str]:
    result = adapted(Path("unused"), dry_run=True, **changed)
    return [norm.decision for norm in result.adaptation.norms]


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"norms": "best:2"}, "left left left swapped swapped"),
        ({"norms": "0,blocks.1.*"}, "swapped left swapped swapped left"),
        ({"threshold": 0.23}, "refused refused swapped swapped swapped"),
        ({"threshold": 0.23, "norms": "0-2"}, "refused refused swapped left left"),
        ({"threshold": 0.23, "force": True}, "swapped swapped swapped swapped swapped"),
        ({"threshold": 0.0}, "refused refused refused refused refused"),
    ],
)
def test_norms_are_chosen_by_position_path_score_and_threshold(changed: dict[str, Any], wanted: str) -> None:
    assert decisions(**changed) == wanted.split()


def test_where_no_norm_can_be_replaced_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 5 norms can be replaced") as caught:
        adapted(tmp_path / "artifact", threshold=0.01)
    assert "final comes nearest: unsteady-norm" in caught.value.why
    assert "--force" in caught.value.hint and not list(tmp_path.iterdir())


# Nothing keeps it: what would be lowered is held back, which takes longer than all the rest.
UNREACHABLE = flowopt.QualityBudget(min_cosine=1.0)


def test_what_is_left_stays_a_norm(tmp_path: Path) -> None:
    result = adapted(tmp_path, norms="final", recovery=NOTHING, budget=UNREACHABLE)
    census = operator_census(result.program.graph)
    assert (census["aten.rms_norm"], census["aten.layer_norm"]) == (4, 0)
    assert [stage.name for stage in result.adaptation.stages] == ["uncalibrated", "swapped"]


def test_layer_norms_of_a_post_norm_model_become_rms_norms(tmp_path: Path) -> None:
    result = tagger(tmp_path, swap_norm="rms", budget=UNREACHABLE)
    census = operator_census(result.program.graph)
    assert (census["aten.rms_norm"], census["aten.layer_norm"]) == (5, 0)
    # The first is an RMS norm by an exact pass already.
    first, *others = result.adaptation.norms
    assert (first.decision, first.reason.split(":")[0], first.score) == ("refused", "not-a-norm", float("inf"))
    assert [norm.decision for norm in others] == ["swapped"] * 4
    assert {norm.saved_bytes for norm in result.adaptation.norms} == {0}


@pytest.mark.slow
def test_rms_norms_are_lowered_as_such(tmp_path: Path) -> None:
    result = tagger(tmp_path, swap_norm="rms")
    assert result.report is not None and result.report.outcome == "approximate"
    norms = {name: count for name, count in result.report.census_lowered.items() if "Norm" in name}
    assert norms == {"RMSNormalization": 5}


def test_the_best_norms_for_rms_are_those_with_the_smallest_mean(tmp_path: Path) -> None:
    result = tagger(tmp_path, swap_norm="rms", norms="best:2", dry_run=True)
    scores = {norm.position: norm.score for norm in result.adaptation.norms}
    assert {norm.position for norm in result.adaptation.swapped} == set(sorted(scores, key=lambda at: scores[at])[:2])


def test_padding_is_found_and_neither_calibrates_nor_counts(tmp_path: Path) -> None:
    found = tagger(tmp_path, recovery=NOTHING, budget=UNREACHABLE).adaptation
    without = tagger(tmp_path, recovery=NOTHING, budget=UNREACHABLE, padding="none").adaptation
    assert "padding is where attention_mask is 0" in found.notes
    assert found.stages[-1].agreement[0].rows == int(texts(64, seed=2)["attention_mask"].sum())
    assert without.stages[-1].agreement[0].rows == texts(64, seed=2)["attention_mask"].numel()
    assert found.norms[0].tokens < without.norms[0].tokens
