"""``flowopt inspect``."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command import flowopt, model
from tests.cli.test_optimize import saved_archive


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "folding.flowopt"
    assert flowopt("optimize", model("folding"), "-o", folder, "--verify", "off").code == 0
    return folder


def test_a_model_is_counted_in_one_screen() -> None:
    ran = flowopt("inspect", model("folding"))
    assert (ran.code, ran.err) == (0, "")
    assert ran.first == f"{model('folding')}: 6 operators of 6 kinds, 596 bytes stored"
    for part in ("[batch, 3, 6]", "float32", "aten.conv1d", "FLOP", "batch=3", "fold-norm-affine", "captured by torch"):
        assert part in ran.out
    assert len(ran.out.splitlines()) <= 50


def test_refusals_are_counted_by_code() -> None:
    ran = flowopt("inspect", model("post_norm"))
    line = next(line for line in ran.out.splitlines() if line.startswith("fold-norm-affine"))
    assert line.split() == ["fold-norm-affine", "0", "2", "post-norm", "2"]


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("what", ["model", "artifact"])
def test_no_line_is_wider_than_the_screen(
    columns: int, what: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = flowopt("inspect", artifact if what == "artifact" else model("folding"))
    # The first line is one piece whatever the screen: it holds what the user typed.
    assert max(len(line) for line in ran.out.splitlines()[1:]) <= columns


def test_an_artifact_is_shown_with_its_report(artifact: Path) -> None:
    ran = flowopt("inspect", artifact)
    assert (ran.code, ran.err) == (0, "")
    assert ran.first == f"{artifact}: not-verified, for cpu, made from tests.cli.models.Folding"
    for part in ("model.onnx", "Conv", "fold-batch-norm", "kept", "opset ai.onnx 23", "made with flowopt", "sha256"):
        assert part in ran.out


def test_an_onnx_file_is_an_artifact_whatever_its_name(artifact: Path) -> None:
    (Path.cwd() / "renamed.bin").write_bytes((artifact / "model.onnx").read_bytes())
    ran = flowopt("inspect", "renamed.bin")
    assert ran.code == 0
    assert ran.first == "renamed.bin: no report"
    assert "[batch, 3, 6]" in ran.out and "no report.json belongs to this model" in ran.out


def test_json_on_stdout_is_alone_there(artifact: Path) -> None:
    ran = flowopt("inspect", model("talking"), "--json", "-")
    found = json.loads(ran.out)
    assert (found["kind"], found["census"]["aten.linear"], found["captured"]) == ("model", 1, {"batch": 3})
    assert ran.err == "a line that the model's own code prints\n"
    found = json.loads(flowopt("inspect", artifact, "--json", "-").out)
    assert (found["kind"], found["census"]["Conv"], found["report"]["outcome"]) == ("artifact", 1, "not-verified")


def test_json_in_a_file_comes_beside_the_tables() -> None:
    ran = flowopt("inspect", model("folding"), "--json", "found.json")
    assert ran.first.startswith(model("folding"))
    assert json.loads(Path("found.json").read_text())["parameter_bytes"] == 596


def test_options_of_the_capture_arrive() -> None:
    ran = flowopt("inspect", model("in_train_mode"), "--eval", "--dynamic", "rows=signal:0:2..9", "--passes", "none")
    assert ran.code == 0
    assert "rows" in ran.out and "fold-batch-norm" not in ran.out
    assert flowopt("inspect", model("in_train_mode")).code == 2


def test_an_archive_names_its_digest_and_trust(tmp_path: Path) -> None:
    ran = flowopt("inspect", saved_archive(tmp_path / "m.pt2"))
    assert ran.code == 0
    assert "from m.pt2, read with --trust data" in ran.out and "sha256 " in ran.last


@pytest.mark.parametrize("options", [["--eval"], ["--dynamic", "b=x:0"], ["--passes", "none"], ["--factory", "m:f"]])
def test_options_for_models_are_exit_2_for_an_artifact(artifact: Path, options: list[str]) -> None:
    ran = flowopt("inspect", artifact, *options)
    assert (ran.code, ran.out) == (2, "")
    assert options[0] in ran.err.splitlines()[0]


def test_exit_codes_of_what_cannot_be_inspected(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert flowopt("inspect", "absent.pt2").code == 66
    assert flowopt("inspect", "empty").code == 65
    assert flowopt("inspect", model("folding"), "--passes", "fold-batchnorm").code == 2
    assert flowopt("inspect", artifact, "--limit", "nodes=1").code == 65
    assert flowopt("inspect", model("broken"), "--json", "none/found.json").code == 73


def test_an_unknown_pass_suggests_the_nearest_before_the_model_is_loaded() -> None:
    ran = flowopt("inspect", model("broken"), "--passes", "fold-batchnorm")
    assert ran.code == 2
    assert "did you mean fold-batch-norm" in ran.err


def test_what_a_report_says_cannot_speak_to_the_terminal(artifact: Path) -> None:
    shutil.copytree(artifact, "copy")
    report = json.loads(Path("copy/report.json").read_text())
    hostile = "\x1b[2J\x07\u202e" + "a" * 100_000
    report |= {"outcome": hostile, "warnings": [hostile], "versions": {hostile: hostile}}
    Path("copy/report.json").write_text(json.dumps(report))
    ran = flowopt("inspect", "copy")
    assert ran.code == 0
    assert all(char.isprintable() or char == "\n" for char in ran.out) and len(ran.out) < 40_000
    assert r"\x1b[2J\x07\u202eaaa" in ran.out
