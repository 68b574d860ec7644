import json
from pathlib import Path

import pytest

from tests.cli.command import flowopt, model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "folding.flowopt"
    ran = flowopt("optimize", model("folding"), "-o", folder)
    assert ran.code == 0, ran.err
    return folder


def test_an_artifact_of_the_model_is_equivalent(artifact: Path) -> None:
    ran = flowopt("verify", model("folding"), artifact)
    assert ran.code == 0
    assert ran.first.startswith("equivalent: ")
    for head in ("cases: traced", "output", "max", "p99", "rms", "ulp", "SNR", "1-cos", "original", "ratio", "power"):
        assert head in ran.out
    assert "would have been seen" in ran.out


def test_another_model_is_different_and_the_findings_come_first(artifact: Path) -> None:
    ran = flowopt("verify", model("other_weights"), artifact)
    assert ran.code == 1
    first, second, *_ = ran.out.splitlines()
    assert first.startswith("different: ")
    assert " gate, " in second


def test_another_interface_is_different() -> None:
    ran = flowopt("verify", model("folding"), model("post_norm"))
    assert ran.code == 1
    assert "input signal: the candidate lacks it" in ran.out


def test_random_numbers_are_inconclusive() -> None:
    ran = flowopt("verify", model("random"), model("random"))
    assert ran.code == 3
    assert ran.first.startswith("inconclusive: ")
    assert "draws random numbers" in ran.out


def test_an_artifact_is_no_reference(artifact: Path) -> None:
    ran = flowopt("verify", artifact, model("folding"))
    assert ran.code == 2
    assert "give the original archive or factory first" in ran.err


def test_a_provider_that_is_not_here_is_exit_69_and_no_verdict(artifact: Path) -> None:
    ran = flowopt("verify", model("folding"), artifact, "--provider", "OpenVINOExecutionProvider")
    assert (ran.code, ran.out) == (69, "")
    assert "OpenVINOExecutionProvider" in ran.err


def test_a_provider_without_an_artifact_is_a_usage_error() -> None:
    ran = flowopt("verify", model("folding"), model("folding"), "--provider", "cpu")
    assert ran.code == 2
    assert "--provider applies to artifact folders" in ran.err


def test_eval_and_dynamic_reach_the_factory(artifact: Path) -> None:
    ran = flowopt("verify", model("in_train_mode"), artifact, "--eval", "--dynamic", "batch=signal:0:2..9")
    assert ran.code == 0
    assert "smallest[batch=2]" in ran.out


def test_capture_options_without_a_factory_are_a_usage_error(artifact: Path) -> None:
    ran = flowopt("verify", artifact, artifact, "--dynamic", "batch=signal:0")
    assert ran.code == 2
    assert "--dynamic applies to what is captured now" in ran.err


def test_json_holds_the_verdict_and_the_exit_code(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    ran = flowopt("verify", model("other_weights"), artifact, "--json", path)
    verdict = json.loads(path.read_text())
    assert (verdict["outcome"], verdict["exit_code"], ran.code) == ("different", 1, 1)
    assert verdict["findings"]
    assert ran.first.startswith("different: ")
