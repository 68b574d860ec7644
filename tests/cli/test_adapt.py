"""``flowopt adapt``: what it writes and says, and what other commands make of that."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from torch import Tensor

from flowopt.cli.outcome import adapt_code
from flowopt.cli.render_adaptation import render_adaptation
from flowopt.report.adaptation import Adaptation, Agreement, Stage
from flowopt.report.report import LevelVerdict, Report
from flowopt.report.verdict import Finding, Outcome, Verdict
from tests.cli.command import Ran, flowopt, python
from tests.recovery.shifted import images, shifted
from tests.workflows.adapting.tiny import HERE, cnn, labelled, pre_norm_program
from tests.workflows.adapting.tiny import captured as program_of

MODEL = f"{HERE}:pre_norm"
QUICK = ("--steps", "4", "--no-timing")


def saved(path: Path, arrays: Mapping[str, Tensor]) -> Path:
    content: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    numpy.savez(path, **content)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("data") / "images.npz", labelled(256, seed=1))


@pytest.fixture(scope="module")
def artifact(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("made") / "out"
    options = ("--swap-norm", "unified", "--force", "--metric", "accuracy:labels", "--max-drop", "0.5")
    return folder, flowopt("adapt", MODEL, *options, "--data", data, *QUICK, "-o", folder)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is there at once: capturing it takes longer than all the rest."""
    for command in ("adapt", "optimize", "verify"):
        monkeypatch.setattr(f"flowopt.cli.{command}.load_model", lambda *_: pre_norm_program().copy())


def test_the_outcome_is_the_first_line_and_the_artifact_the_last(artifact: tuple[Path, Ran]) -> None:
    folder, ran = artifact
    assert ran.code == 0, ran.err
    assert ran.first == f"approximate: swap-norm to unified, 5 of 5 norms of {MODEL} for cpu"
    assert ran.last.startswith(f"artifact: {folder} (model.onnx, report.json, weights.")


def test_the_stages_stand_below_the_original_with_the_metric(artifact: tuple[Path, Ran]) -> None:
    lines = artifact[1].out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("stage "))
    assert lines[at].split() == ["stage", "output", "cosine", "worst", "error", "top-1", "accuracy", "seconds"]
    first = [line.split()[0] for line in lines[at + 1 : at + 6]]
    assert first == ["original", "uncalibrated", "swapped", "ridge", "distill"]
    assert lines[at + 1].split() == ["original", "1.0000"]


def test_inspect_says_that_an_artifact_was_adapted_and_how_far_it_is_from_its_original(
    artifact: tuple[Path, Ran],
) -> None:
    folder, _ = artifact
    ran = flowopt("inspect", folder)
    stage = json.loads((folder / "report.json").read_text())["adaptation"]["stages"][-1]
    assert (
        ran.code == 0
        and ran.first == f"{folder}: approximate, for cpu, made from tests.workflows.adapting.tiny.PreNorm"
    )
    text = " ".join(ran.out.split())
    assert (
        "adapted on images.npz: swap-norm to unified, 5 of 5 norms replaced; not the function of its original" in text
    )
    assert "output beside the original's on 26 held-out samples: cosine" in text
    assert f"cosine {stage['agreement'][0]['cosine']:.4f}" in text
    assert f"accuracy {stage['metric']:.4f}, the original's 1.0000" in text


def test_no_folder_of_this_machine_is_in_the_report(data: Path, artifact: tuple[Path, Ran]) -> None:
    text = (artifact[0] / "report.json").read_text()
    assert json.loads(text)["adaptation"]["data"] == "images.npz"
    assert str(data.parent) not in text and str(artifact[0].parent) not in text


def test_inspect_of_an_adapted_artifact_is_json_too(artifact: tuple[Path, Ran]) -> None:
    ran = flowopt("inspect", artifact[0], "--json", "-")
    found = json.loads(ran.out)["report"]["adaptation"]
    assert (found["method"], found["norms"], found["swapped"]) == ("swap-norm to unified", 5, 5)


@pytest.mark.usefixtures("captured")
def test_verify_says_that_an_adapted_artifact_is_another_function(artifact: tuple[Path, Ran]) -> None:
    folder, _ = artifact
    ran = flowopt("verify", MODEL, folder)
    assert ran.code == 1 and ran.first.startswith(f"different: {folder} does not compute the function of {MODEL}")
    assert ran.last.startswith("note: the candidate was adapted (swap-norm to unified) and is not meant to be the same")
    assert f"flowopt inspect {folder}" in ran.last


@pytest.fixture
def damaged(artifact: tuple[Path, Ran]) -> Path:
    """An artifact whose report says what no adaptation says."""
    shutil.copytree(artifact[0], "damaged")
    path = Path("damaged/report.json")
    content = json.loads(path.read_text())
    content["adaptation"]["stages"] = []
    path.write_text(json.dumps(content))
    return Path("damaged")


def test_inspect_of_a_damaged_adaptation_says_so_and_goes_on(damaged: Path) -> None:
    ran = flowopt("inspect", damaged)
    assert ran.code == 0 and ran.first == "damaged: no report"
    assert "note: report.json: adaptation: stages is list, not a list of 1 or more" in ran.out


@pytest.mark.slow
def test_verify_of_a_damaged_adaptation_is_as_without(damaged: Path) -> None:
    ran = flowopt("verify", MODEL, damaged)
    assert ran.code == 1 and "adapted" not in ran.out


@pytest.mark.usefixtures("captured")
def test_the_report_of_an_adapted_artifact_is_a_baseline(artifact: tuple[Path, Ran]) -> None:
    ran = flowopt("optimize", MODEL, "--dry-run", "--baseline", artifact[0] / "report.json")
    assert (ran.code, ran.out) == (4, "")
    assert "aten.rms_norm 5 (0 before)" in ran.err
    assert "the baseline is of an adapted model: swap-norm to unified" in ran.err


@pytest.mark.slow
def test_that_numbers_differ_comes_before_a_baseline(artifact: tuple[Path, Ran]) -> None:
    assert flowopt("verify", MODEL, artifact[0], "--baseline", artifact[0] / "report.json").code == 1


@pytest.mark.usefixtures("captured")
def test_a_dry_run_is_a_table_of_norms_that_80_columns_hold(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = flowopt("adapt", MODEL, "--swap-norm", "unified", "--data", data, "--threshold", "0.23", "--dry-run")
    assert ran.code == 0
    assert ran.first == f"dry-run, nothing written: 3 of 5 norms of {MODEL} can be replaced (swap-norm to unified)"
    assert ran.last == "the same command without --dry-run replaces them and recovers the model's quality"
    lines = ran.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["norm", "kind"])
    rows = lines[at + 1 : at + 6]
    assert max(map(len, rows)) <= 80
    assert [row.split()[1] for row in rows] == [
        "blocks.0.norm1",
        "blocks.0.norm2",
        "blocks.1.norm1",
        "blocks.1.norm2",
        "final",
    ]
    assert [row.split()[-1] for row in rows] == ["unsteady-norm", "unsteady-norm", "replaced", "replaced", "replaced"]
    assert not list(Path().iterdir())


@pytest.mark.usefixtures("captured")
def test_json_to_stdout_is_nothing_else(data: Path) -> None:
    ran = flowopt("adapt", MODEL, "--swap-norm", "power", "--data", data, "--dry-run", "--json", "-")
    found = json.loads(ran.out)
    assert (found["artifact"], found["exit_code"]) == (None, 0)
    assert [norm["position"] for norm in found["adaptation"]["norms"]] == [0, 1, 2, 3, 4]
    assert found["adaptation"]["settings"]["choice"]["to"] == "power"


@pytest.mark.usefixtures("captured")
def test_beyond_the_budget_is_exit_1_and_nothing_is_written(data: Path) -> None:
    options = ("--swap-norm", "unified", "--force", "--recover", "none", "--min-cosine", "0.9999")
    ran = flowopt("adapt", MODEL, *options, "--data", data, "-o", "out", "--json", "out.json")
    assert ran.code == 1 and not Path("out").exists()
    assert ran.first == f"beyond its budget, nothing written: swap-norm to unified, 5 of 5 norms of {MODEL}"
    assert ran.out.splitlines()[1].startswith("beyond the budget: output: mean cosine 0.9")
    found = json.loads(Path("out.json").read_text())
    assert (found["artifact"], found["exit_code"], len(found["adaptation"]["broken"])) == (None, 1, 1)


def cnn_data() -> Path:
    x, labels = images(128, seed=3)
    return saved(Path("shifted.npz"), {"x": shifted(x).float(), "labels": labels})


def test_a_recalibration_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(cnn())
    monkeypatch.setattr("flowopt.cli.adapt.load_model", lambda *_: program)
    options = ("--recalibrate", "select", "--metric", "accuracy:labels", "--data", cnn_data(), "--no-timing")
    dry = flowopt("adapt", f"{HERE}:cnn", *options, "--dry-run")
    assert dry.first == f"dry-run, nothing written: {HERE}:cnn can be recalibrated (recalibrate-batch-norm by select)"
    assert dry.last.startswith("the same command without --dry-run stores the new statistics")
    ran = flowopt("adapt", f"{HERE}:cnn", *options, "-o", "out")
    assert ran.code == 0 and ran.first == f"approximate: recalibrate-batch-norm by select, {HERE}:cnn for cpu"
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith(("source", "re-est"))] == [
        "source",
        "re-estimated",
    ]
    text = flowopt("inspect", "out").out
    assert ": recalibrate-batch-norm by select; not the function of its original" in text


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Outcome.DIFFERENT, 1), (Outcome.INCONCLUSIVE, 3), (Outcome.APPROXIMATE, 0), (Outcome.NOT_VERIFIED, 0)],
)
def test_a_lowered_file_that_differs_from_the_adapted_model_is_no_success(outcome: Outcome, code: int) -> None:
    said = Adaptation("swap-norm to unified", "x.npz", 9, ())
    assert adapt_code(said, report(outcome)) == code
    assert adapt_code(said, None) == 0


def report(outcome: Outcome) -> Report:
    finding = Finding("ratio", "output", "traced[batch=3]", "error 1 where 0.1 is allowed")
    verdict = Verdict(outcome, (finding,))
    return Report(outcome.value, "cpu", "m", (), {}, {}, lowered=(LevelVerdict("disabled", verdict),))


def test_why_nothing_was_written_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("swapped", (Agreement("output", 9, 0.99, 0.9, 0.1, None),))
    said = Adaptation("swap-norm to unified", "x.npz", 9, (), stages=(stage,))
    render_adaptation(said, report(Outcome.DIFFERENT), "m", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("different, nothing written: swap-norm to unified, m for cpu")
    assert "  ratio gate, output: error 1 where 0.1 is allowed (case traced[batch=3])" in lines


def test_names_in_a_report_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("swapped", (Agreement("\x1b[2Jout", 9, 0.99, 0.9, 0.1, None),), notes=("\x1b[31mred",))
    said = Adaptation("swap-norm", "\x1b[1m.npz", 9, (), stages=(stage,), notes=("\x07bell",))
    render_adaptation(said, None, "m", None)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out


@pytest.mark.slow
def test_two_processes_write_one_artifact_and_say_so_once(data: Path, tmp_path: Path) -> None:
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "flowopt.cli.main", "adapt", MODEL)
    options = ("--swap-norm", "unified", "--force", "--data", str(data), *QUICK, "-o", "out")
    ran = python(*words, *options, folder=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.out.count("approximate: swap-norm to unified") == 1
    assert (tmp_path / "out" / "model.onnx").is_file()
