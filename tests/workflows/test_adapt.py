"""``flowopt.adapt`` swaps the norms of trained models, and says how far what it wrote is from the original."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import CannotWrite, Inconclusive, UserError
from flowopt.ir.text import graph_text
from flowopt.program.program import Program
from flowopt.report.to_json import plain
from tests.workflows.adapting.tiny import (
    captured,
    labelled,
    patches,
    pre_norm,
    pre_norm_program,
)
from tests.workflows.adapting.tiny_runs import NOTHING, adapted

STAGES = ["uncalibrated", "swapped", "ridge", "distill"]


def content(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


@dataclasses.dataclass(frozen=True)
class Done:
    """One whole adaptation, and the original as it was before."""

    result: flowopt.AdaptResult
    folder: Path
    module: nn.Module
    program: Program
    graph: str
    tensors: dict[str, Tensor]
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    made = pre_norm()
    program = captured(made)
    graph = graph_text(program.graph)
    tensors, state = (copied(tensors) for tensors in (program.tensors, made["module"].state_dict()))
    folder = tmp_path_factory.mktemp("adapted") / "artifact"
    result = adapted(folder, program, force=True, metric="accuracy:labels")
    return Done(result, folder, made["module"], program, graph, tensors, state)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_no_normalization_is_left_in_the_file(done: Done) -> None:
    assert done.result.report is not None
    assert done.result.report.census_lowered["Gemm"] > 0
    assert not [name for name in done.result.report.census_lowered if "Norm" in name]
    assert len(done.result.adaptation.swapped) == 5


def test_the_outcome_is_approximate_and_no_more(done: Done) -> None:
    assert done.result.report is not None and done.result.report.outcome == "approximate"
    assert content(done.folder)["outcome"] == "approximate"


def test_the_stages_are_in_order_and_in_the_report(done: Done) -> None:
    assert [stage.name for stage in done.result.adaptation.stages] == STAGES
    stored = content(done.folder)["adaptation"]
    assert [stage["name"] for stage in stored["stages"]] == STAGES
    assert stored == plain(done.result.adaptation)


def test_each_step_that_counts_brings_the_outputs_nearer_to_the_original(done: Done) -> None:
    cosine = {stage.name: stage.agreement[0].cosine for stage in done.result.adaptation.stages}
    assert cosine["uncalibrated"] < cosine["swapped"] < cosine["distill"]


def test_the_callers_program_and_module_are_as_they_were(done: Done) -> None:
    assert graph_text(done.program.graph) == done.graph
    for now, before in ((done.program.tensors, done.tensors), (done.module.state_dict(), done.state)):
        assert now.keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in now.items())
    assert not done.module.training and all(p.grad is None for p in done.module.parameters())


def test_the_artifact_computes_the_adapted_program(done: Done) -> None:
    given = patches(64, seed=2)
    assert done.result.artifact is not None
    found, wanted = done.result.artifact.run_named(given)["output"], done.result.program.run_named(given)["output"]
    # Both in float32, with sums in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes(done: Done, tmp_path: Path) -> None:
    adapted(tmp_path, force=True, metric="accuracy:labels")
    names = {path.name for path in done.folder.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()} and len(names) == 3
    for name in names - {"report.json"}:
        assert (done.folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_last_stage_is_what_the_artifact_measures_on_held_out_data(done: Done) -> None:
    data = labelled(64, seed=2)
    given = {"patches": data["patches"]}
    assert done.result.artifact is not None
    found, wanted = done.result.artifact.run_named(given)["output"], pre_norm_program().run_named(given)["output"]
    cosine = torch.nn.functional.cosine_similarity(found.double(), wanted.double()).mean().item()
    stage = done.result.adaptation.stages[-1]
    assert stage.agreement[0].cosine == pytest.approx(cosine, abs=1e-5)  # the artifact rounds otherwise
    assert stage.agreement[0].rows == done.result.adaptation.held_out == 64
    # The labels are what the original says.
    assert done.result.adaptation.original_metric == 1.0
    assert stage.metric == (found.argmax(-1) == data["labels"]).double().mean().item() == stage.agreement[0].top1


def test_the_errors_of_norms_are_told_for_every_stage_after_the_swap(done: Done) -> None:
    for norm in done.result.adaptation.swapped:
        assert list(norm.errors) == STAGES[1:]
    first = done.result.adaptation.norms[0]
    # Nothing before the first norm is approximate: its error is the score's, on other data.
    assert first.errors["swapped"] == pytest.approx(first.score, rel=0.2)  # 64 samples beside 256


def test_a_dry_run_judges_and_writes_nothing(tmp_path: Path) -> None:
    result = adapted(tmp_path / "artifact", dry_run=True)
    assert (result.artifact, result.report, result.adaptation.stages) == (None, None, ())
    assert result.program is pre_norm_program()
    assert not list(tmp_path.iterdir())
    assert [norm.score for norm in result.adaptation.norms] != [0.0] * 5


def test_beyond_the_budget_nothing_is_written(tmp_path: Path) -> None:
    budget = flowopt.QualityBudget(min_cosine=0.9999, max_drop=0.0)
    result = adapted(tmp_path / "artifact", force=True, recovery=NOTHING, budget=budget, metric="accuracy:labels")
    assert (result.artifact, result.report) == (None, None)
    assert [said.split()[0] for said in result.adaptation.broken] == ["output:", "the"]
    assert result.adaptation.budget == {"min_cosine": 0.9999, "max_drop": 0.0}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"budget": flowopt.QualityBudget(max_drop=0.1)}, "max_drop limits a metric, and none was given"),
        ({"recalibrate": "select"}, "adapt does one thing"),
        ({"swap_norm": None}, "adapt does one thing"),
        ({"swap_norm": "unifide"}, "swap_norm='unifide' is not known"),
        ({"swap_norm": None, "recalibrate": "alpha"}, "recalibrate='alpha' is not known"),
        ({"swap_norm": None, "recalibrate": "select", "norms": "0"}, "norms='0' is of swap_norm"),
        ({"linearize": "hedgehog"}, "adapt does one thing"),
        ({"swap_norm": None, "linearize": "hedgehgo"}, "'hedgehgo' is no linear attention"),
        ({"swap_norm": None, "linearize": "hedgehog", "threshold": 0.2}, "threshold=0.2 is of swap_norm"),
        ({"swap_norm": None, "linearize": "hedgehog", "keep_softmax": 1.0}, "keep_softmax=1.0 is no share"),
        ({"swap_norm": None, "linearize": "hedgehog", "keep_by": "kl"}, "keep_by='kl' is not known"),
        ({"keep_softmax": 0.5}, "keep_softmax=0.5 is of linearize"),
        ({"attention": {"window": 4}}, "attention={'window': 4} is of linearize"),
        ({"recovery": flowopt.RecoveryPlan(steps=("transfer",))}, "'transfer' is no step of this recovery"),
        ({"outputs": ["logits"]}, "no floating output 'logits'"),
        ({"held_out": 1.0}, "held_out=1.0 is a fraction"),
    ],
)
def test_what_means_nothing_is_refused_before_any_work(tmp_path: Path, changed: dict[str, Any], complaint: str) -> None:
    steps: list[str] = []
    with pytest.raises(UserError, match=complaint) as caught:
        adapted(tmp_path / "artifact", on_progress=steps.append, **changed)
    assert caught.value.hint
    assert not steps and not list(tmp_path.iterdir())


def test_a_folder_of_somebody_elses_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    steps: list[str] = []
    with pytest.raises(CannotWrite):
        adapted(tmp_path, on_progress=steps.append)
    assert not steps


def test_an_original_that_cannot_be_measured_takes_nothing_from_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Inconclusive("nothing ran")

    monkeypatch.setattr("flowopt.workflows.adapting.lowered.compared", fails)
    result = adapted(tmp_path, force=True, recovery=NOTHING, timing=True, target="torch")
    assert result.artifact is not None and result.adaptation.comparison is None
    assert content(tmp_path)["adaptation"]["notes"] == ["not measured beside the original: nothing ran"]


@pytest.mark.slow
def test_latency_and_memory_are_measured_beside_the_original(tmp_path: Path) -> None:
    result = adapted(tmp_path, force=True, recovery=NOTHING, timing=True)
    found = result.adaptation.comparison
    assert found is not None and result.report is not None and result.report.adaptation is result.adaptation
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    assert 0 < found.stored_bytes[1] <= found.stored_bytes[0] and found.adapted_ms > 0
    assert content(tmp_path)["adaptation"]["comparison"] == plain(found)
    assert flowopt.Artifact.open(tmp_path).report["adaptation"] == plain(result.adaptation)
