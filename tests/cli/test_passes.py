import json

import pytest

from flowopt.pipeline.pass_source import read_pass_options
from flowopt.pipeline.presets import PRESETS
from flowopt.pipeline.registry import entries
from tests.cli.command import flowopt


def test_lists_every_pass_and_preset() -> None:
    ran = flowopt("passes")
    assert ran.code == 0
    words = set(ran.out.replace(",", " ").split())
    assert set(entries()) <= words
    assert set(PRESETS) <= words


@pytest.mark.parametrize("name", entries())
def test_shows_the_documentation_of_a_pass_as_it_is_written(name: str) -> None:
    ran = flowopt("passes", name)
    assert ran.code == 0
    assert ran.first == f"{name} ({entries()[name].exactness}): {entries()[name].summary}"
    assert entries()[name].documentation in ran.out


def options_of(name: str) -> tuple[tuple[str, str, str], ...]:
    entry = entries()[name]
    assert entry.path is not None
    return read_pass_options(entry.path, entry.class_name)


def test_options_come_with_default_and_meaning() -> None:
    options = {name: (default, meaning) for name, default, meaning in options_of("fold-batch-norm")}
    default, meaning = options["min_variance"]
    assert float(json.loads(default)) > 0
    assert "variance" in meaning


def test_class_variables_are_no_options() -> None:
    assert "anchors" not in [name for name, *_ in options_of("fold-batch-norm")]


def test_fields_that_the_text_form_cannot_name_are_no_options() -> None:
    names = [name for name, *_ in options_of("merge-parallel-linears")]
    assert names == ["min_gain", "max_growth", "copies"]


def test_an_unknown_pass_suggests_the_nearest() -> None:
    ran = flowopt("passes", "fold-batchnorm")
    assert ran.code == 2
    assert "did you mean fold-batch-norm" in ran.err
