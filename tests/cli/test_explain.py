import json

import pytest

from flowopt.pipeline.presets import PRESETS
from tests.cli.command import flowopt, model


def test_shows_every_site_with_module_guard_and_source() -> None:
    ran = flowopt("explain", model("post_norm"))
    assert ran.code == 0
    assert "fold-norm-affine (exact): 2 sites, 0 applied, 2 refused" in ran.out
    for part in ("post-norm", "first (layer_norm)", "second (layer_norm_1)", "cli/models.py:", "self.second(x)"):
        assert part in ran.out
    assert "  refused: post-norm 2" in ran.out.splitlines()


def test_shows_applied_sites_too() -> None:
    ran = flowopt("explain", model("folding"))
    assert ran.first == f"2 rewrites possible in {model('folding')}"
    assert "applied  batch_norm (" in ran.out
    assert "folded into conv1d" in ran.out


def test_no_rewrite_is_said_in_the_first_line() -> None:
    first = flowopt("explain", model("post_norm")).first
    assert first.startswith("0 rewrites possible")
    assert first.endswith("most frequent refusal: post-norm (2 of 4 sites)")


@pytest.mark.parametrize("columns", [80, 160])
def test_no_table_line_is_wider_than_the_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = flowopt("explain", model("post_norm"))
    # The first line is one piece whatever the screen: it holds what the user typed.
    assert max(len(line) for line in ran.out.splitlines()[1:]) <= columns
    assert "x + self.second(x)" in " ".join(ran.out.split())


def test_one_pass_alone() -> None:
    ran = flowopt("explain", model("folding"), "--pass", "fold-batch-norm")
    assert "fold-batch-norm (" in ran.out
    assert "fold-norm-affine" not in ran.out


@pytest.mark.parametrize(("option", "name"), [("--pass", "fold-batchnorm"), ("--passes", "fold-batchnorm")])
def test_an_unknown_pass_suggests_the_nearest_before_the_model_is_loaded(option: str, name: str) -> None:
    ran = flowopt("explain", model("broken"), option, name)
    assert ran.code == 2
    assert "did you mean fold-batch-norm" in ran.err


def test_a_pass_that_the_pipeline_lacks_is_a_usage_error() -> None:
    ran = flowopt("explain", model("folding"), "--passes", "none", "--pass", "fold-batch-norm")
    assert ran.code == 2
    assert "the pipeline has no pass 'fold-batch-norm'" in ran.err


def test_train_mode_needs_eval() -> None:
    refused = flowopt("explain", model("in_train_mode"))
    assert refused.code == 2
    assert "--eval" in refused.err
    assert flowopt("explain", model("in_train_mode"), "--eval").code == 0


def test_json_on_stdout_is_alone_there() -> None:
    ran = flowopt("explain", model("talking"), "--json", "-")
    report = json.loads(ran.out)
    assert [p["name"] for p in report["passes"]] == list(PRESETS["exact"])
    assert ran.err == "a line that the model's own code prints\n"
