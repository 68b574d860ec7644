"""A step beside a baseline and in the bench: it takes one token, and its model whole sequences."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowopt
from flowopt.errors import RequirementNotMet, UserError
from flowopt.program.program import Program
from flowopt.report import baseline as compared
from flowopt.report.verdict import Outcome
from flowopt.workflows.optimize import Form, optimize
from flowopt.workflows.verify import verify
from tests.recurrence.causal_models import decoder, on_tokens


def model() -> Program:
    return decoder("elu")


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("recurrent", tmp_path_factory.mktemp("step") / "step")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("parallel", tmp_path_factory.mktemp("whole") / "whole")


def written(form: Form, folder: Path) -> Path:
    assert optimize(model(), form=form, folder=folder).artifact is not None
    return folder


@pytest.fixture
def edited(step: Path, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    def write(change: Callable[[Any], None]) -> Path:
        report = json.loads((step / "report.json").read_text())
        change(report)
        path = tmp_path / "base.json"
        path.write_text(json.dumps(report))
        return path

    return write


def test_a_step_meets_its_own_baseline(step: Path, tmp_path: Path) -> None:
    base = step / "report.json"
    made = optimize(model(), form="recurrent", folder=tmp_path / "out", baseline=base)
    assert made.artifact is not None
    assert verify(model(), made.artifact, baseline=base).outcome is Outcome.EQUIVALENT


def test_a_step_that_is_worse_than_its_baseline_is_not_written(step: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementNotMet, match="worse than in the baseline"):
        optimize(
            model(),
            form="recurrent",
            folder=tmp_path / "out",
            baseline=step / "report.json",
            skip=["fold-norm-affine"],
        )
    assert not (tmp_path / "out").exists()


def without_errors(report: Any) -> None:
    for verdict in (report["recurrence"]["verdict"], *(one["verdict"] for one in report["lowered"])):
        for figure in verdict["figures"]:
            figure["ratio"] = 0.0


def test_verify_compares_the_errors_of_a_step(
    step: Path, edited: Callable[[Callable[[Any], None]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared, "RATIO_FLOOR", 0.0)
    with pytest.raises(RequirementNotMet, match="output output: error ratio"):
        verify(model(), step, baseline=edited(without_errors))


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
def test_a_baseline_of_the_other_form_is_refused(step: Path, whole: Path, form: Form) -> None:
    other, of = (step, "recurrent") if form == "parallel" else (whole, "parallel")
    with pytest.raises(UserError, match=f"is of a run with --form {of}, this one has --form {form}"):
        optimize(model(), form=form, dry_run=True, baseline=other / "report.json")


def test_a_baseline_of_another_models_step_is_refused(step: Path) -> None:
    with pytest.raises(UserError, match="is of another model"):
        optimize(on_tokens(torch.tanh), form="recurrent", dry_run=True, baseline=step / "report.json")
    with pytest.raises(UserError, match="is of another model"):
        verify(on_tokens(torch.tanh), step, baseline=step / "report.json")


def test_a_step_is_not_timed_beside_whole_sequences(step: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="is a step, which takes one token") as caught:
        flowopt.bench([step], reference=model())
    assert caught.value.hint == f"flowopt bench {step} measures the step alone"
    with pytest.raises(UserError, match="other artifacts take whole sequences"):
        flowopt.bench([whole, step])
