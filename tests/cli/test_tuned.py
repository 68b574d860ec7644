"""``flowopt optimize --tuned FILE``."""

from pathlib import Path

from tests.cli.command import flowopt, model
from tests.workflows.parallel_model import PASSES, choices, program

GATED = "tests.workflows.parallel_model:gated"


def test_a_build_follows_the_choices_of_the_file(tmp_path: Path) -> None:
    choices(program(), True, False).save(tmp_path / "tuned.json")
    ran = flowopt("optimize", GATED, "--passes", PASSES, "--tuned", "tuned.json", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert ": 1 rewrite applied to " in ran.first


def test_choices_that_were_not_followed_are_a_warning(tmp_path: Path) -> None:
    choices(program(), True, False, rows=9).save(tmp_path / "tuned.json")
    ran = flowopt("optimize", GATED, "--passes", PASSES, "--tuned", "tuned.json", "--dry-run")
    assert ran.code == 0
    assert "2 of 2 measured choices were not followed" in ran.out


def test_a_wrong_file_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tuned.json").write_text("{}")
    ran = flowopt("optimize", model("broken"), "--passes", PASSES, "--tuned", "tuned.json")
    assert ran.code == 2
    assert "tuned.json holds no measured choices: its schema_version is None" in ran.err


def test_a_pipeline_without_the_pass_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    choices(program(), True, False).save(tmp_path / "tuned.json")
    ran = flowopt("optimize", model("broken"), "--passes", "none", "--tuned", "tuned.json")
    assert ran.code == 2
    assert "no pass that the measured choices are for" in ran.err


def test_a_file_of_another_model_is_an_error(tmp_path: Path) -> None:
    choices(program(width=5), True, False).save(tmp_path / "tuned.json")
    ran = flowopt("optimize", GATED, "--passes", PASSES, "--tuned", "tuned.json", "--dry-run")
    assert ran.code == 2
    assert "measured for another model" in ran.err
