"""The adaptation in a report: what ``adapt`` wrote comes back, everything else is refused with its place."""

import dataclasses
import json
import math
from typing import Any

import pytest

from flowopt.errors import MalformedModel
from flowopt.report.adaptation import Adaptation, Agreement, Comparison, NormRecord, Stage
from flowopt.report.attention_record import AttentionRecord
from flowopt.report.bench import Ratio
from flowopt.report.report import Report
from flowopt.report.stored import StoredAdaptation, StoredAgreement, stored_report
from flowopt.report.to_json import to_json


def norm(position: int, decision: str, **changed: Any) -> NormRecord:
    known: dict[str, Any] = {"score": 0.2, "massive_ratio": 1.5, "massive": 0, "tokens": 9, "saved_bytes": 8}
    return NormRecord(position, f"n{position}", None, "layer", "post", 4, decision=decision, **(known | changed))


ADAPTATION = Adaptation(
    method="swap-norm to unified",
    data="images.npz",
    held_out=9,
    norms=(norm(0, "swapped"), norm(1, "left"), norm(2, "refused", score=math.inf, massive_ratio=math.nan)),
    stages=(
        Stage("swapped", (Agreement("logits", 9, 0.5, 0.1, 0.9, 0.25),), 0.25),
        Stage("distill", (Agreement("logits", 9, 0.75, math.nan, math.inf, None),), 0.5, 1.5, ("12 steps",)),
    ),
    original_metric=0.625,
    metric="accuracy",
    comparison=Comparison({"batch": 1}, 2.0, 1.0, Ratio(0.5, 0.25, 0.75, 12), (8, 4), (2, 1)),
)


def attention(position: int, decision: str, **figures: float) -> AttentionRecord:
    return AttentionRecord(position, f"a{position}", None, 4, 2, 8, True, 64, decision, **figures)  # type: ignore[arg-type]  # figures are numbers


LINEARIZATION = dataclasses.replace(
    ADAPTATION,
    norms=(),
    layers=(attention(0, "swapped", crossover=48.5), attention(1, "refused"), attention(2, "kept", entropy=math.nan)),
)


def written(adaptation: Adaptation = ADAPTATION) -> Any:
    return json.loads(to_json(Report("approximate", "cpu", "m.pt2", (), {}, {}, adaptation=adaptation)))


def read(content: Any) -> StoredAdaptation | None:
    return stored_report(content, what="base.json").adaptation


def test_what_is_written_comes_back() -> None:
    assert read(written()) == StoredAdaptation(
        method="swap-norm to unified",
        norms=3,
        swapped=1,
        data="images.npz",
        held_out=9,
        agreement=(StoredAgreement("logits", 0.75, math.inf, None),),
        metric="accuracy",
        metrics=(0.625, 0.5),
    )


def test_numbers_that_json_lacks_are_words() -> None:
    content = written()["adaptation"]
    assert (content["norms"][2]["score"], content["norms"][2]["massive_ratio"]) == ("inf", "nan")
    assert content["stages"][1]["agreement"][0]["worst_cosine"] == "nan"
    assert content["comparison"]["ratio"]["low"] == 0.25


def test_a_report_of_a_model_that_was_not_adapted_has_none() -> None:
    content = written()
    content["adaptation"] = None
    assert read(content) is None
    # Reports that were written before there were adaptations.
    del content["adaptation"]
    assert read(content) is None


def test_layers_are_counted_by_what_became_of_them() -> None:
    found = read(written(LINEARIZATION))
    assert found is not None and (found.layers, found.linearized, found.norms) == (3, 1, 0)
    content = written(LINEARIZATION)["adaptation"]["layers"]
    assert [one["crossover"] for one in content] == [48.5, None, None]
    assert [one["entropy"] for one in content] == [None, None, "nan"]


def test_layers_are_told_apart() -> None:
    said = LINEARIZATION
    assert [one.site for one in (*said.linearized, *said.refused_layers, *said.kept_softmax)] == ["a0", "a1", "a2"]
    assert not said.swapped and not said.refused


def test_a_report_that_is_older_than_linearization_has_no_layers() -> None:
    content = written()
    del content["adaptation"]["layers"]
    found = read(content)
    assert found is not None and (found.layers, found.linearized) == (0, 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), "swap-norm"),
        ((), []),
        ((), {}),
        (("method",), None),
        (("data",), 3),
        (("held_out",), 0.5),
        (("held_out",), True),
        (("norms",), {}),
        (("norms", 0), "swapped"),
        (("norms", 0, "decision"), None),
        (("layers",), {}),
        (("layers",), ["swapped"]),
        (("stages",), []),
        (("stages",), None),
        (("stages", 1), 3),
        (("stages", 1, "agreement"), None),
        (("stages", 1, "agreement", 0, "output"), 0),
        (("stages", 1, "agreement", 0, "cosine"), "large"),
        (("stages", 1, "agreement", 0, "relative_error"), None),
        (("stages", 1, "agreement", 0, "top1"), True),
        (("stages", 1, "metric"), [0.5]),
        (("original_metric",), "high"),
        (("metric",), None),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(place: tuple[str | int, ...], value: object) -> None:
    content = written()
    inner, keys = content, ("adaptation", *place)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(MalformedModel) as caught:
        read(content)
    assert caught.value.message.startswith("base.json: adaptation")
    assert str(keys[-1]) in caught.value.message
