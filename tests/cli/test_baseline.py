"""``--baseline report.json``: exit code 4 with what is worse, other codes for what is no baseline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowopt as package
from flowopt.errors import RequirementNotMet
from flowopt.report.verdict import Finding, Outcome, Verdict
from tests.cli.command import flowopt, model
from tests.cli.models import folding

FEWER = ("--skip", "fold-batch-norm")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "folding.flowopt"
    assert flowopt("optimize", model("folding"), "-o", folder).code == 0
    return folder


@pytest.fixture
def edited(artifact: Path, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """The baseline with changes, which stand for an earlier version of anything."""

    def write(change: Callable[[Any], None]) -> Path:
        report = json.loads((artifact / "report.json").read_text())
        change(report)
        path = tmp_path / "base.json"
        path.write_text(json.dumps(report))
        return path

    return write


def test_the_same_run_meets_its_own_baseline(artifact: Path) -> None:
    ran = flowopt("optimize", model("folding"), "-o", "out", "--baseline", artifact / "report.json")
    assert (ran.code, ran.err) == (0, "")
    assert Path("out/model.onnx").exists()


def test_a_run_that_is_worse_is_exit_4_names_each_thing_and_writes_nothing(artifact: Path, tmp_path: Path) -> None:
    ran = flowopt("optimize", model("folding"), "-o", "out", "--baseline", artifact / "report.json", *FEWER)
    assert (ran.code, ran.out) == (4, "")
    first, *more = ran.err.splitlines()
    assert first.startswith("flowopt: 3 things are worse than in the baseline ") and first.endswith("(exit 4)")
    why = "\n".join(more)
    assert "fold-batch-norm: not in the pipeline; applied before at _native_batch_norm" in why
    assert "captured operators after the last pass: 6, 5 before: aten._native_batch_norm" in why
    assert "lowered operators: 7, 6 before: BatchNormalization 1 (0 before)" in why
    assert len(ran.err.splitlines()) <= 24
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_lies_there_stays(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    options = ("--verify", "off", "-o", "out", "--baseline", "out/report.json")
    assert flowopt("optimize", model("folding"), *options).code == 4
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_refusal_is_named_with_its_code(artifact: Path) -> None:
    passes = ("--passes", "fold-batch-norm:min_variance=1000,fold-norm-affine", "--dry-run")
    ran = flowopt("optimize", model("folding"), *passes, "--baseline", artifact / "report.json")
    assert ran.code == 4
    assert "applied at 0 of 1 sites; refused now: _native_batch_norm_legit_no_training (tiny-scale)" in ran.err


def test_an_improvement_is_exit_0(edited: Callable[..., Path]) -> None:
    def poorer(report: Any) -> None:
        report["passes"] = [p for p in report["passes"] if p["name"] != "fold-batch-norm"]
        report["census_after"]["aten.relu"] = 9
        report["census_lowered"]["Relu"] = 9
        report["parameter_bytes"] = [10**6, 10**6]
        report["outcome"] = "not-verified"

    ran = flowopt("optimize", model("folding"), "--baseline", edited(poorer))
    assert (ran.code, ran.err) == (0, "")


def test_verification_that_is_left_out_is_worse(artifact: Path) -> None:
    ran = flowopt("optimize", model("folding"), "--verify", "off", "--baseline", artifact / "report.json")
    assert ran.code == 4
    assert "1 thing is worse" in ran.err and "outcome: not-verified, verified before" in ran.err


def test_python_raises_as_for_require(artifact: Path) -> None:
    made = folding()
    program = package.capture(made["module"], made["args"], dynamic=made["dynamic"], dims=made["dims"])
    with pytest.raises(RequirementNotMet, match="worse than in the baseline") as caught:
        package.optimize(program, skip=["fold-batch-norm"], baseline=artifact / "report.json", dry_run=True)
    assert caught.value.exit_code == 4


def test_a_verdict_comes_before_the_baseline(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Verdict(Outcome.DIFFERENT, (Finding("ratio", "output", "traced", "1e-3, where 1e-6 is allowed"),))
    monkeypatch.setattr("flowopt.workflows.lower.verify_outputs", lambda *_, **__: found)
    ran = flowopt("optimize", model("folding"), "--baseline", artifact / "report.json", *FEWER)
    assert ran.code == 1
    assert ran.first.startswith("different, nothing written")


def no_json(path: Path) -> None:
    path.write_text("{")


def twice(path: Path) -> None:
    path.write_text('{"schema_version": 1, "schema_version": 1}')


def no_report(path: Path) -> None:
    path.write_text("[]")


def other_version(path: Path) -> None:
    path.write_text('{"schema_version": 99}')


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def absent(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("command", [["optimize", "--dry-run"], ["verify", "tests.cli.models:folding"]])
@pytest.mark.parametrize(
    ("make", "code"),
    [(no_json, 65), (twice, 65), (no_report, 65), (other_version, 65), (deep, 65), (absent, 66), (folder, 2)],
)
def test_what_is_no_baseline_has_an_exit_code_before_the_model_is_loaded(
    command: list[str], make: Callable[[Path], None], code: int, tmp_path: Path
) -> None:
    make(tmp_path / "base.json")
    name, *options = command
    ran = flowopt(name, model("broken"), *options, "--baseline", "base.json")
    assert (ran.code, ran.out) == (code, "")
    assert "base.json" in ran.err.splitlines()[0] and "\n  try   " in ran.err


def test_a_report_of_explain_is_no_baseline() -> None:
    assert flowopt("explain", model("folding"), "--json", "base.json").code == 0
    ran = flowopt("optimize", model("folding"), "--baseline", "base.json")
    assert ran.code == 65
    assert "does not say of which inputs and outputs it is" in ran.err


def rename(report: Any) -> None:
    report["interface"]["inputs"][0]["name"] = "image"


def reshape(report: Any) -> None:
    report["interface"]["outputs"][0]["shape"] = ["batch", 5, 6]


def widen(report: Any) -> None:
    report["interface"]["dims"]["batch"]["maximum"] = 128


def retarget(report: Any) -> None:
    report["target"] = "torch"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (rename, "is of another model: input image: float32[batch, 3, 6] there, none here"),
        (reshape, "output output: float32[batch, 5, 6] there, output: float32[batch, 5, 5] here"),
        (widen, "batch is 1..128 there, 1..64 here"),
        (retarget, "is for target torch, this run for cpu"),
    ],
)
def test_a_baseline_of_another_model_or_target_is_exit_2(
    edited: Callable[..., Path], change: Callable[[Any], None], complaint: str
) -> None:
    ran = flowopt("optimize", model("folding"), "--dry-run", "--baseline", edited(change))
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err


def test_an_interface_that_is_malformed_is_exit_65(edited: Callable[..., Path]) -> None:
    path = edited(lambda report: report["interface"].update(inputs=3))
    ran = flowopt("optimize", model("folding"), "--dry-run", "--baseline", path)
    assert ran.code == 65
    assert "base.json" in ran.err


def shrink_errors(report: Any) -> None:
    for one in report["lowered"]:
        for figure in one["verdict"]["figures"]:
            figure["ratio"] = 0.01


def rename_cases(report: Any) -> None:
    for one in report["lowered"]:
        for figure in one["verdict"]["figures"]:
            figure["case"] = f"another {figure['case']}"


def test_verify_compares_errors_with_those_of_the_lowered_file(artifact: Path, edited: Callable[..., Path]) -> None:
    same = flowopt("verify", model("folding"), artifact, "--baseline", artifact / "report.json")
    assert same.code == 0 and same.first.startswith("equivalent: ")
    ran = flowopt("verify", model("folding"), artifact, "--baseline", edited(shrink_errors))
    assert (ran.code, ran.out) == (4, "")
    assert "output output: error ratio 0." in ran.err and "0.01 before" in ran.err


@pytest.mark.slow
def test_verify_of_another_model_is_different_whatever_the_baseline(artifact: Path) -> None:
    ran = flowopt("verify", model("other_weights"), artifact, "--baseline", artifact / "report.json")
    assert ran.code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda report: report.update(lowered=[]), "has no errors to compare with"),
        (rename_cases, "has no case that this run has"),
    ],
)
def test_verify_without_a_common_case_is_exit_2(
    artifact: Path, edited: Callable[..., Path], change: Callable[[Any], None], complaint: str
) -> None:
    ran = flowopt("verify", model("folding"), artifact, "--baseline", edited(change))
    assert ran.code == 2
    assert complaint in ran.err and "base.json" in ran.err.splitlines()[0]
