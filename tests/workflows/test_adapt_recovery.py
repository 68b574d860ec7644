"""How ``flowopt.adapt`` recovers: repeatable, resumable, from streams, and not at any price."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowopt
from flowopt.errors import Diverged, FlowoptError, MalformedModel, MissingDependency, UserError
from flowopt.ir.text import graph_text
from flowopt.program.program import Program
from flowopt.recovery.checkpoint import Checkpoint, write_checkpoint
from tests.workflows.adapting.tiny import (
    labelled,
)
from tests.workflows.adapting.tiny_runs import PLAN, QUICK, SETTINGS, adapted, tagger


def unlowered(folder: Path, **changed: Any) -> Program:
    """What is trained, which a budget that nothing keeps holds back."""
    return adapted(folder, force=True, budget=flowopt.QualityBudget(min_cosine=1.0), **changed).program


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    whole = unlowered(folder)

    def killed(step: str) -> None:
        if step.startswith("distilling, step 41 "):
            raise KeyboardInterrupt

    state = tmp_path / "state"
    plan = dataclasses.replace(PLAN, checkpoint=state)
    with pytest.raises(KeyboardInterrupt):
        unlowered(folder, recovery=plan, on_progress=killed)
    steps: list[str] = []
    resumed = unlowered(folder, recovery=dataclasses.replace(plan, resume=True), on_progress=steps.append)
    assert next(step for step in steps if step.startswith("distilling")).startswith("distilling, step 31 of 60")
    assert graph_text(resumed.graph) == graph_text(whole.graph)
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())


def test_a_checkpoint_in_the_artifacts_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    plan = dataclasses.replace(QUICK, checkpoint=tmp_path / "artifact" / "states" / "last")
    steps: list[str] = []
    with pytest.raises(UserError, match="lies in the artifact's folder") as caught:
        adapted(tmp_path / "artifact", force=True, recovery=plan, on_progress=steps.append)
    assert caught.value.hint and not steps


def refused_at_once(folder: Path, error: type[FlowoptError], match: str, **changed: Any) -> None:
    steps: list[str] = []
    with pytest.raises(error, match=match) as caught:
        adapted(folder, force=True, on_progress=steps.append, **changed)
    assert caught.value.hint and not steps


def test_a_checkpoint_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = dataclasses.replace(SETTINGS, outputs=("output",), features=("add",))
    write_checkpoint(state, Checkpoint({}, {"identity": {"settings": dataclasses.asdict(settings)}}))
    plan = dataclasses.replace(PLAN, checkpoint=state)
    folder = tmp_path / "artifact"
    refused_at_once(folder, UserError, "is there already", recovery=plan)
    plan = dataclasses.replace(plan, resume=True, settings=dataclasses.replace(SETTINGS, loss="kl"))
    refused_at_once(folder, UserError, "other settings: loss='mse', now 'kl', seed=0, now 7", recovery=plan, seed=7)
    write_checkpoint(state, Checkpoint({}, {}))
    refused_at_once(folder, MalformedModel, "is no checkpoint", recovery=plan)


def test_an_optimizer_that_is_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    plan = dataclasses.replace(PLAN, settings=dataclasses.replace(SETTINGS, optimizer="adamp"))
    refused_at_once(tmp_path, MissingDependency, "adamp comes from the package pytorch_optimizer", recovery=plan)


def test_data_too_few_for_every_part_are_refused_before_any_work(tmp_path: Path) -> None:
    one = {"calibration": 1, "batch_size": 1}
    refused_at_once(tmp_path, UserError, "a fit needs samples to be judged by", **one)
    refused_at_once(tmp_path, UserError, "no batch to choose the best state by", data=[labelled(16, seed=1)])


def test_streamed_data_do_as_well_as_arrays(tmp_path: Path) -> None:
    def batches() -> Iterator[dict[str, Tensor]]:
        for number in range(20):
            yield labelled(16, seed=number)

    budget = flowopt.QualityBudget(min_cosine=1.0)
    given: dict[str, Any] = {"data": batches, "held_out": 0.2, "recovery": QUICK, "metric": "accuracy:labels"}
    found = adapted(tmp_path, force=True, budget=budget, **given).adaptation
    assert (found.data, found.held_out, found.original_metric) == ("batches", 4 * 16, 1.0)
    assert found.stages[-1].agreement[0].rows == 4 * 16


def test_a_dry_run_needs_no_end_of_a_stream(tmp_path: Path) -> None:
    def endless() -> Iterator[dict[str, Tensor]]:
        for number in itertools.count():
            yield labelled(16, seed=number)

    found = adapted(tmp_path, force=True, data=endless, held_out=0.2, calibration=2, dry_run=True).adaptation
    assert found.held_out is None and all(norm.reason == "" for norm in found.norms)


def test_a_diverging_loss_writes_nothing(tmp_path: Path) -> None:
    plan = flowopt.RecoveryPlan(settings=dataclasses.replace(SETTINGS, learning_rate=1e8, clip=0.0))
    with pytest.raises(Diverged) as caught:
        adapted(tmp_path / "artifact", force=True, recovery=plan)
    assert "a smaller learning rate" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("to", ["power", "frozen", "batch", "unified"])
@pytest.mark.parametrize("recover", ["match", "distill"])
def test_every_kind_folds_and_is_recovered(tmp_path: Path, to: str, recover: str) -> None:
    settings = dataclasses.replace(SETTINGS, schedule="one-at-a-time", settle=0.8)
    plan = flowopt.RecoveryPlan(steps=(recover,), settings=settings, match_steps=30)
    result = tagger(tmp_path / "artifact", swap_norm=to, recovery=plan)
    assert result.report is not None
    assert not [name for name in result.report.census_lowered if "Norm" in name]
    cosine = {stage.name: stage.agreement[0].cosine for stage in result.adaptation.stages}
    assert cosine["swapped"] < cosine[recover]
