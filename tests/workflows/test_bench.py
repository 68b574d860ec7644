"""The whole bench on a tiny artifact, with a short plan."""

from pathlib import Path

import pytest

import flowopt
from flowopt.errors import Inconclusive, MissingDependency, ModelNotFound, UserError
from flowopt.measuring.process import ContenderFailedError
from flowopt.measuring.rounds import Plan
from flowopt.program.program import Program
from flowopt.report.bench import BenchCell
from flowopt.workflows import bench as workflow
from tests.measuring.conftest import TINY, artifact, program

__all__ = ["artifact", "program"]
SHORT = Plan(burst=0.002, fewest=2, most=2, budget=5.0)
SIZES = ({"batch": 1, "sequence": 4}, {"batch": 2})


def test_every_cell_has_times_ratios_and_peaks(artifact: Path, program: Program) -> None:
    cells: list[BenchCell] = []
    report = flowopt.bench(
        [artifact],
        reference=program,
        factory=TINY,
        vs=["eager"],
        sizes=SIZES,
        threads=1,
        plan=SHORT,
        on_cell=cells.append,
    )
    assert list(report.cells) == cells
    assert [cell.label for cell in cells] == ["tiny batch=1 sequence=4", "tiny batch=2 sequence=64"]
    for cell in cells:
        assert set(cell.scouted) == set(cell.measured) == {"flowopt", "eager"}
        assert set(cell.ratios) == {"eager"} and cell.best == "eager" and cell.plain is None
        assert cell.peaks is not None and cell.failures == {}
    assert report.threads == 1 and "onnxruntime" in report.versions and report.processor


@pytest.mark.slow
def test_artifacts_alone_are_measured_beside_each_other(artifact: Path) -> None:
    report = flowopt.bench([artifact, artifact, artifact], sizes=SIZES[:1], threads=1, plan=SHORT)
    assert set(report.cells[0].scouted) == {"flowopt", "tiny", "tiny-2"}
    assert report.cells[0].peaks is None


def test_what_competitors_made_is_kept_for_this_model_alone(
    artifact: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def prepared(names: object, source: object, folder: Path) -> tuple[list[object], dict[str, str]]:
        made.append(folder)
        return [], {}

    monkeypatch.setattr(workflow, "prepared", prepared)
    monkeypatch.setattr(workflow, "measured_peaks", lambda *_: None)
    monkeypatch.setattr(workflow, "measured_cell", lambda *_, **__: BenchCell("tiny", {}, "flowopt", {}, {}, {}))
    for factory in (TINY, TINY, None):
        flowopt.bench([artifact], reference=program, factory=factory, vs=["ort"], folder=tmp_path)
    assert made[0] == made[1] != made[2]
    assert all(folder.parent == tmp_path for folder in made)
    assert (made[2] / "reference.pt2").exists()


def test_ours_that_does_not_run_is_inconclusive_and_says_what_to_do(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ContenderFailedError("it crashed with SIGSEGV")

    monkeypatch.setattr(workflow, "measured_cell", fail)
    with pytest.raises(Inconclusive, match="does not run at tiny batch=1 sequence=64") as caught:
        flowopt.bench([artifact])
    assert caught.value.why == "it crashed with SIGSEGV"
    assert "--at" in caught.value.hint and "flowopt verify" in caught.value.hint


@pytest.mark.slow
def test_peaks_that_cannot_be_measured_leave_the_times(
    artifact: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ContenderFailedError("no kernel")

    monkeypatch.setattr(workflow, "measured_peaks", fail)
    (cell,) = flowopt.bench([artifact], reference=program, sizes=SIZES[:1], threads=1, plan=SHORT).cells
    assert cell.peaks is None and cell.failures == {"peaks": "no kernel"} and "flowopt" in cell.measured


def test_without_the_artifact_s_runtime_nothing_starts(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency) as caught:
        flowopt.bench([artifact])
    assert "pip install" in caught.value.hint


def test_what_is_wrong_is_said_before_anything_is_measured(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no artifact to measure"):
        flowopt.bench([])
    with pytest.raises(ModelNotFound):
        flowopt.bench([tmp_path / "absent"])
    with pytest.raises(UserError, match="needs the model itself"):
        flowopt.bench([artifact], vs=["eager"])
    with pytest.raises(UserError, match="no free dimension 'rows'") as caught:
        flowopt.bench([artifact], sizes=[{"rows": 1}])
    assert "batch, sequence" in caught.value.hint
    with pytest.raises(UserError, match="batch=9 is outside of its range 1 to 8"):
        flowopt.bench([artifact], sizes=[{"batch": 9}])
