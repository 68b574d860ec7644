"""``flowopt.adapt(recalibrate=...)`` gives batch norms the statistics of shifted data, and they fold as before."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowopt
from flowopt.errors import UserError
from flowopt.ir.text import graph_text
from flowopt.program.program import Program
from tests.recovery.shifted import accuracy, images, shifted, trained
from tests.workflows.adapting.tiny import pre_norm_program


@cache
def classifier() -> Program:
    """In float32, as models are deployed."""
    given = images(3, seed=1)[0].float()
    return flowopt.capture(trained().float(), (given,), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 256)})


def data(count: int, seed: int) -> dict[str, Tensor]:
    """Of another brightness and contrast than the classifier was trained on."""
    x, labels = images(count, seed)
    return {"x": shifted(x).float(), "labels": labels}


def recalibrated(folder: Path, way: str, **changed: Any) -> flowopt.AdaptResult:
    given: dict[str, Any] = {"data": data(256, seed=3), "held_out": data(256, seed=4), "metric": "accuracy:labels"}
    return flowopt.adapt(classifier(), recalibrate=way, folder=folder, timing=False, **(given | changed))


@pytest.mark.parametrize("way", ["reestimate", "alpha-bn", "select"])
def test_held_out_accuracy_improves_and_no_batch_norm_is_left(tmp_path: Path, way: str) -> None:
    before = graph_text(classifier().graph)
    result = recalibrated(tmp_path / "artifact", way, target_weight=0.9)
    (stage,) = result.adaptation.stages
    assert stage.metric is not None and result.adaptation.original_metric is not None
    assert stage.metric >= result.adaptation.original_metric + 0.2
    assert result.report is not None and result.report.outcome == "approximate"
    assert not [name for name in result.report.census_lowered if "Norm" in name]
    assert graph_text(classifier().graph) == before
    held = data(256, seed=4)
    assert result.artifact is not None
    found = result.artifact.run_named({"x": held["x"]})["output"]
    assert accuracy(found, held["labels"]) == pytest.approx(stage.metric, abs=1 / 256)  # one image on a boundary
    original = classifier().run_named({"x": held["x"]})["output"]
    assert accuracy(original, held["labels"]) == result.adaptation.original_metric


def test_a_selection_tells_what_it_tried_and_takes_the_best(tmp_path: Path) -> None:
    found = recalibrated(tmp_path, "select", dry_run=True).adaptation
    assert list(found.tried) == [
        "source",
        *(f"alpha {weight:g}" for weight in (0.1, 0.3, 0.5, 0.7, 0.9)),
        "re-estimated",
    ]
    best = max(found.tried, key=lambda name: found.tried[name])
    assert any(note.startswith(f"{best}, chosen by the metric") for note in found.notes)
    assert found.tried["source"] < found.tried[best] and not found.stages and not list(tmp_path.iterdir())


def test_without_a_metric_the_entropy_of_predictions_selects(tmp_path: Path) -> None:
    found = recalibrated(tmp_path, "select", metric=None, dry_run=True).adaptation
    assert "the mean entropy of predictions" in found.notes[0]
    assert found.notes[0].startswith(min(found.tried, key=lambda name: found.tried[name]))


def test_statistics_of_the_data_alone_do_not_depend_on_those_that_were_stored(tmp_path: Path) -> None:
    """Re-estimation is alpha-BN with all the weight on the data."""
    budget = flowopt.QualityBudget(min_cosine=1.0)
    one = recalibrated(tmp_path, "reestimate", target_weight=0.5, budget=budget)
    other = recalibrated(tmp_path, "alpha-bn", target_weight=1.0, budget=budget)
    given = {"x": data(8, seed=5)["x"]}
    torch.testing.assert_close(one.program.run_named(given), other.program.run_named(given), rtol=0, atol=0)
    none = recalibrated(tmp_path, "alpha-bn", target_weight=0.0)
    # In float32, through statistics that were mixed in float64.
    torch.testing.assert_close(none.program.run_named(given), classifier().run_named(given), rtol=1e-5, atol=1e-5)


def test_a_model_without_batch_norms_has_nothing_to_recalibrate(tmp_path: Path) -> None:
    given = {"patches": torch.zeros(64, 5, 6)}
    with pytest.raises(UserError, match="no batch norm") as caught:
        flowopt.adapt(pre_norm_program(), recalibrate="reestimate", data=given, folder=tmp_path)
    assert caught.value.hint


def test_norms_that_go_by_their_batch_are_frozen_and_fold(tmp_path: Path) -> None:
    module = trained().float()
    # The last norm keeps no statistics: an image's prediction hangs on the images beside it.
    norms: Any = module.norms
    norms[1].running_mean = norms[1].running_var = norms[1].num_batches_tracked = None
    norms[1].track_running_stats = False
    given = data(8, seed=1)["x"]
    program = flowopt.capture(module, (given,), dynamic={"x": {0: "batch"}}, dims={"batch": (2, 256)})
    common: dict[str, Any] = {"data": data(128, seed=3), "held_out": data(128, seed=4), "timing": False}
    result = flowopt.adapt(program, recalibrate="freeze", folder=tmp_path, metric="accuracy:labels", **common)
    assert result.adaptation.method == "freeze-test-time-norm"
    assert result.report is not None and not [n for n in result.report.census_lowered if "Norm" in n]
    assert result.artifact is not None
    whole, part = (result.artifact.run_named({"x": x})["output"] for x in (given, given[:2]))
    # In float32, batches of another size are summed in another order.
    torch.testing.assert_close(whole[:2], part, rtol=1e-4, atol=1e-5)
    alone = program.run_named({"x": given[:2]})["output"]
    assert not torch.allclose(program.run_named({"x": given})["output"][:2], alone, rtol=1e-3)


def test_a_model_without_norms_of_the_batch_has_nothing_to_freeze(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no batch norm that goes by its batch") as caught:
        recalibrated(tmp_path, "freeze")
    assert "reestimate" in caught.value.hint
