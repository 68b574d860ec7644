"""A report out of a file: what ``optimize`` wrote comes back, everything else is refused with its place."""

import copy
import json
from typing import Any

import pytest

from flowopt.errors import MalformedModel
from flowopt.report.passes import PassRecord
from flowopt.report.report import LevelVerdict, Report
from flowopt.report.sites import Applied, Refusal
from flowopt.report.stored import StoredFigure, stored_report
from flowopt.report.to_json import to_json
from flowopt.report.verdict import Figures, Outcome, Verdict

FIGURES = Figures("output", "traced", 1e-7, 1e-7, 0.5, None, float("inf"))
REPORT = Report(
    outcome="verified",
    target="cpu",
    source="m.pt2",
    passes=(
        PassRecord(
            name="fold-batch-norm:min_variance=1.0",
            exactness="exact",
            anchors=2,
            applied=(Applied("bn", "", "", "folded"),),
            refused=(Refusal("bn_1", "", "", "multiple-readers", "it is read twice", "bn_1"),),
            outcome="kept",
        ),
    ),
    census_before={"aten.add": 2},
    census_after={"aten.add": 1},
    lowered=(LevelVerdict("disabled", Verdict(Outcome.EQUIVALENT, figures=(FIGURES,))),),
    runtime={"level": "all"},
    parameter_bytes=(8, 4),
    warnings=("careful",),
    versions={"torch": "2.13"},
)


def written() -> Any:
    return json.loads(to_json(REPORT))


def test_what_is_written_comes_back() -> None:
    report = stored_report(written(), what="report.json")
    (one,) = report.passes
    assert (one.bare_name, one.kept, one.refused) == ("fold-batch-norm", ("bn",), {"bn_1": "multiple-readers"})
    assert report.lowered[0].figures == (StoredFigure("output", "traced", 0.5),)
    assert report.lowered[0].worst_ratio == 0.5
    assert (report.parameter_bytes, report.runtime_level, report.warnings) == ((8, 4), "all", ("careful",))
    assert (report.outcome, report.target, report.census_after) == ("verified", "cpu", {"aten.add": 1})


def test_a_reverted_pass_kept_nothing() -> None:
    content = written()
    content["passes"][0]["outcome"] = "reverted"
    (one,) = stored_report(content, what="report.json").passes
    assert (one.applied, one.kept) == (("bn",), ())


@pytest.mark.parametrize("ratio", ["inf", "nan", 3])
def test_numbers_that_json_lacks_are_words(ratio: object) -> None:
    content = written()
    content["lowered"][0]["verdict"]["figures"][0]["ratio"] = ratio
    assert repr(stored_report(content, what="r").lowered[0].figures[0].ratio) == repr(float(str(ratio)))


@pytest.mark.parametrize("value", [None, 3, [], "report", {}, {"schema_version": 2}, {"schema_version": "1"}])
def test_another_version_and_no_report_are_refused(value: object) -> None:
    with pytest.raises(MalformedModel, match="^base.json "):
        stored_report(value, what="base.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("outcome",), 3),
        (("passes",), {}),
        (("passes", 0), "fold"),
        (("passes", 0, "applied"), None),
        (("passes", 0, "applied", 0, "site"), 1),
        (("passes", 0, "refused", 0, "code"), None),
        (("census_after", "aten.add"), "one"),
        (("census_after", "aten.add"), True),
        (("parameter_bytes",), [1, 2, 3]),
        (("lowered", 0, "verdict"), None),
        (("lowered", 0, "verdict", "figures", 0, "ratio"), "large"),
        (("runtime",), []),
        (("interface",), 3),
        (("warnings", 0), None),
        (("versions", "torch"), 2.13),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(place: tuple[Any, ...], value: object) -> None:
    content = copy.deepcopy(written())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(MalformedModel) as caught:
        stored_report(content, what="base.json")
    assert caught.value.message.startswith(f"base.json: {place[0]}")
    assert str(place[-1]) in caught.value.message
