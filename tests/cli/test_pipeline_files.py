"""``--passes FILE.toml``."""

import json
from pathlib import Path

import pytest

from tests.cli.command import flowopt, model


@pytest.mark.parametrize("command", [["optimize", "--dry-run", "--verify", "off"], ["explain"]])
def test_a_file_of_passes_is_recognised_by_its_suffix(command: list[str]) -> None:
    Path("my.toml").write_text('passes = ["fold-batch-norm"]\n[options.fold-batch-norm]\nmin_variance = 1000')
    name, *options = command
    ran = flowopt(name, model("folding"), *options, "--passes", "my.toml", "--json", "-")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["pipeline"] == "canonicalize-aten,fold-batch-norm:min_variance=1000.0"
    assert [r["code"] for r in report["passes"][1]["refused"]] == ["tiny-scale"]


def test_a_build_is_repeated_from_its_report_without_the_file() -> None:
    Path("my.toml").write_text('preset = "exact"\nskip = ["fold-norm-affine"]')
    options = ("--dry-run", "--verify", "off", "--json", "-")
    first = json.loads(flowopt("optimize", model("folding"), "--passes", "my.toml", *options).out)
    Path("my.toml").unlink()
    second = json.loads(flowopt("optimize", model("folding"), "--passes", first["pipeline"], *options).out)
    assert [p["name"] for p in first["passes"]] == [p["name"] for p in second["passes"]]
    assert first["census_after"] == second["census_after"]


def test_skip_adds_to_the_files() -> None:
    Path("my.toml").write_text('preset = "exact"\nskip = ["fold-norm-affine"]')
    options = ("--dry-run", "--verify", "off", "--json", "-", "--skip", "fold-batch-norm")
    report = json.loads(flowopt("optimize", model("folding"), "--passes", "my.toml", *options).out)
    assert "fold-norm-affine" not in report["pipeline"] and "fold-batch-norm" not in report["pipeline"]
    assert "fold-constants" in report["pipeline"]


@pytest.mark.parametrize("command", ["optimize", "explain"])
@pytest.mark.parametrize("content", [None, "preset = ", 'preset = "exakt"', 'preset = "exact"\nskp = []'])
def test_a_wrong_file_is_exit_2_before_the_model_is_loaded(command: str, content: str | None) -> None:
    if content is not None:
        Path("my.toml").write_text(content)
    ran = flowopt(command, model("broken"), "--passes", "my.toml")
    assert (ran.code, ran.out) == (2, "")
    assert "my.toml" in ran.err.splitlines()[0] and "\n  try   " in ran.err


def test_the_help_shows_a_file_as_it_is_written() -> None:
    ran = flowopt("passes", "--help")
    for line in ('preset = "exact"', 'skip = ["simplify-shapes"]', "[options.fold-constants]", "max_growth = 4194304"):
        assert any(line in shown for shown in ran.out.splitlines())
    assert "FILE.toml" in flowopt("optimize", "--help").out
