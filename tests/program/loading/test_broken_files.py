"""Damaged files of every kind: named, refused with the right code, and never a crash or a wait."""

from pathlib import Path

import pytest

from tests.goals.broken import surveyed


def test_broken_files_are_refused_with_something_to_try(tmp_path: Path) -> None:
    survey = surveyed(tmp_path, count=150, seed=2)
    assert not survey.problems
    assert sum(survey.codes.values()) == 150
    assert survey.codes[65] > 100


@pytest.mark.slow
def test_five_thousand_broken_files(tmp_path: Path) -> None:
    survey = surveyed(tmp_path, count=5000, seed=3)
    assert not survey.problems
    assert survey.slowest < 10
