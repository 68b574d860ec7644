"""``flowopt bench``."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowopt.measuring import competitors
from flowopt.workflows.tuned import Tuned
from tests.cli.command import flowopt, model
from tests.measuring.conftest import TINY, artifact, program

__all__ = ["artifact", "program"]
QUICK = ("--seconds", "0", "--width", "9", "--threads", "1", "--at", "batch=1,sequence=4")
GATED = "tests.workflows.parallel_model:gated"


def numbers_of(lines: Iterator[str]) -> list[str]:
    return [line for line in lines if re.match(r"(flowopt|eager) +\d", line)]


def test_help_names_the_extra_and_fits() -> None:
    ran = flowopt("bench", "--help")
    assert ran.code == 0
    assert 'pip install "flowopt[bench,cpu]"' in " ".join(ran.out.split())
    for option in (
        "--reference",
        "--vs",
        "--at",
        "--threads",
        "--seconds",
        "--width",
        "--markdown",
        "--tune",
        "--folder",
    ):
        assert option in ran.out


def test_a_bench_prints_a_table_that_fits_80_columns_and_writes_both_files(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = flowopt(
        "bench", artifact, "--reference", TINY, "--vs", "eager", *QUICK, "--json", "b.json", "--markdown", "b.md"
    )
    assert (ran.code, ran.err) == (0, "")
    assert len(numbers_of(iter(ran.out.splitlines()))) == 2
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "tiny batch=1 sequence=4" in ran.out and "GFLOP/s" in ran.out
    assert set(json.loads(Path("b.json").read_text())["cells"][0]["measured"]) == {"flowopt", "eager"}
    assert "| tiny batch=1 sequence=4 |" in Path("b.md").read_text()
    assert sorted(path.name for path in Path().iterdir()) == ["b.json", "b.md"]


@pytest.mark.slow
def test_json_stands_alone_on_stdout(artifact: Path) -> None:
    ran = flowopt("bench", artifact, *QUICK, "--json", "-")
    assert ran.code == 0
    assert json.loads(ran.out)["cells"][0]["model"] == "tiny"


@pytest.mark.slow
def test_tune_writes_choices_that_optimize_follows() -> None:
    ran = flowopt("bench", "--reference", GATED, "--tune", "tuned.json", "--threads", "1")
    assert ran.code == 0, ran.err
    assert ran.last == "use them: flowopt optimize MODEL --tuned tuned.json"
    assert len(Tuned.load("tuned.json").merges) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "missing argument 'ARTIFACT...'"),
        (["out", "--at", "batch"], "--at 'batch' is not name=size,name=size"),
        (["out", "--at", "a=1,a=2"], "names a twice"),
        (["out", "--threads", "0"], "--threads"),
        (["out", "--tune", "t.json"], "--tune measures the model itself"),
        (["--tune", "-", "--reference", "m.pt2"], "--tune writes a file"),
        (["--tune", "t.json", "--reference", "m.pt2", "--vs", "eager"], "--vs compares an artifact"),
        (["out", "--trust", "code"], "--trust says how --reference is loaded"),
        (["here", "--vs", "eager"], "--vs eager needs the model itself"),
        (["here", "--vs", "tvm", "--reference", "m.pt2"], "there is no competitor 'tvm'"),
    ],
)
def test_a_wrong_command_line_is_exit_2(arguments: list[str], complaint: str) -> None:
    Path("here").mkdir()
    ran = flowopt("bench", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err


def test_an_absent_artifact_is_exit_66_before_the_model_is_loaded() -> None:
    ran = flowopt("bench", "absent", "--reference", model("broken"))
    assert ran.code == 66
    assert "no artifact at absent" in ran.err


def test_an_absent_model_is_exit_66(artifact: Path) -> None:
    assert flowopt("bench", artifact, "--reference", "absent.pt2", "--vs", "none").code == 66


def test_a_folder_that_is_no_artifact_is_exit_65() -> None:
    Path("here").mkdir()
    assert flowopt("bench", "here").code == 65


def test_a_missing_competitor_is_exit_69_with_its_line_for_pip(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "_is_installed", lambda package: package != "openvino")
    ran = flowopt("bench", artifact, "--reference", model("broken"), "--vs", "eager,openvino")
    assert ran.code == 69
    assert "pip install openvino" in ran.err


def test_a_place_that_cannot_be_written_is_exit_73_before_the_work(artifact: Path) -> None:
    for option in ("--json", "--markdown"):
        ran = flowopt("bench", artifact, option, "absent/b")
        assert ran.code == 73
        assert f"{option} absent/b: there is no folder absent" in ran.err
