"""``flowopt.adapt`` swaps the norms of trained models, and says how far what it wrote is from the original."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowopt
from flowopt.errors import CannotWrite, Diverged, Inconclusive, UserError
from flowopt.ir.text import graph_text
from flowopt.program.program import Program
from flowopt.report.to_json import plain
from tests.workflows.adapting.tiny import labelled, patches, post_norm_program, pre_norm_program, texts

SETTINGS = flowopt.RecoverySettings(steps=60, learning_rate=3e-3, loss="mse", evaluate_every=15)
PLAN = flowopt.RecoveryPlan(settings=SETTINGS)
NOTHING = flowopt.RecoveryPlan(steps=())
QUICK = flowopt.RecoveryPlan(settings=dataclasses.replace(SETTINGS, steps=3, evaluate_every=1))
STAGES = ["uncalibrated", "swapped", "ridge", "distill"]


def adapted(folder: Path, program: Program | None = None, **changed: Any) -> flowopt.AdaptResult:
    """The classifier with every norm swapped, by default."""
    given: dict[str, Any] = {
        "swap_norm": "unified",
        "data": labelled(256, seed=1),
        "held_out": labelled(64, seed=2),
        "recovery": PLAN,
        "folder": folder,
        "timing": False,
    }
    return flowopt.adapt(pre_norm_program() if program is None else program, **(given | changed))


def tagger(folder: Path, **changed: Any) -> flowopt.AdaptResult:
    """The model with padding, with every norm swapped that can be."""
    given = {"data": texts(256, seed=1), "held_out": texts(64, seed=2), "force": True, "recovery": QUICK}
    return adapted(folder, post_norm_program(), **(given | changed))


def content(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


@dataclasses.dataclass(frozen=True)
class Done:
    """One whole adaptation, and the original as it was before."""

    result: flowopt.AdaptResult
    folder: Path
    graph: str
    tensors: dict[str, Tensor]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    program = pre_norm_program()
    graph = graph_text(program.graph)
    tensors = {name: tensor.clone() for name, tensor in program.tensors.items()}
    folder = tmp_path_factory.mktemp("adapted") / "artifact"
    return Done(adapted(folder, force=True, metric="accuracy:labels"), folder, graph, tensors)


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


def test_the_callers_program_is_as_it_was(done: Done) -> None:
    program = pre_norm_program()
    assert graph_text(program.graph) == done.graph
    assert program.tensors.keys() == done.tensors.keys()
    assert all(torch.equal(tensor, done.tensors[name]) for name, tensor in program.tensors.items())


def test_the_artifact_computes_the_adapted_program(done: Done) -> None:
    given = patches(64, seed=2)
    assert done.result.artifact is not None
    found, wanted = done.result.artifact.run_named(given)["output"], done.result.program.run_named(given)["output"]
    # Both in float32, with sums in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


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
        ({"swap_norm": None, "recalibrate": "select", "norms": "0"}, "norms='0' chooses norms to swap"),
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


def test_a_diverging_loss_writes_nothing(tmp_path: Path) -> None:
    plan = flowopt.RecoveryPlan(settings=dataclasses.replace(SETTINGS, learning_rate=1e8, clip=0.0))
    with pytest.raises(Diverged) as caught:
        adapted(tmp_path / "artifact", force=True, recovery=plan)
    assert "a smaller learning rate" in caught.value.hint
    assert not list(tmp_path.iterdir())


def decisions(**changed: Any) -> list[str]:
    result = adapted(Path("unused"), dry_run=True, **changed)
    return [norm.decision for norm in result.adaptation.norms]


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"norms": "best:2"}, "left left left swapped swapped"),
        ({"norms": "0,blocks.1.*"}, "swapped left swapped swapped left"),
        ({"threshold": 0.23}, "refused refused swapped swapped swapped"),
        ({"threshold": 0.23, "norms": "0-2"}, "refused refused swapped left left"),
        ({"threshold": 0.23, "force": True}, "swapped swapped swapped swapped swapped"),
        ({"threshold": 0.0}, "refused refused refused refused refused"),
    ],
)
def test_norms_are_chosen_by_position_path_score_and_threshold(changed: dict[str, Any], wanted: str) -> None:
    assert decisions(**changed) == wanted.split()


def test_where_no_norm_can_be_replaced_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 5 norms can be replaced") as caught:
        adapted(tmp_path / "artifact", threshold=0.01)
    assert "final comes nearest: unsteady-norm" in caught.value.why
    assert "--force" in caught.value.hint and not list(tmp_path.iterdir())


def test_what_is_left_stays_a_norm(tmp_path: Path) -> None:
    result = adapted(tmp_path / "artifact", norms="final", recovery=NOTHING)
    assert result.report is not None
    norms = {name: count for name, count in result.report.census_lowered.items() if "Norm" in name}
    assert norms == {"RMSNormalization": 4}
    assert [stage.name for stage in result.adaptation.stages] == STAGES[:2]


def test_layer_norms_of_a_post_norm_model_become_rms_norms(tmp_path: Path) -> None:
    result = tagger(tmp_path / "artifact", swap_norm="rms")
    assert result.report is not None and result.report.outcome == "approximate"
    assert result.report.census_lowered["RMSNormalization"] == 5
    assert "LayerNormalization" not in result.report.census_lowered
    # The first is an RMS norm by an exact pass already.
    first, *others = result.adaptation.norms
    assert (first.decision, first.reason.split(":")[0], first.score) == ("refused", "not-a-norm", float("inf"))
    assert [norm.decision for norm in others] == ["swapped"] * 4
    assert {norm.saved_bytes for norm in result.adaptation.norms} == {0}


def test_the_best_norms_for_rms_are_those_with_the_smallest_mean(tmp_path: Path) -> None:
    result = tagger(tmp_path, swap_norm="rms", norms="best:2", dry_run=True)
    scores = {norm.position: norm.score for norm in result.adaptation.norms}
    assert {norm.position for norm in result.adaptation.swapped} == set(sorted(scores, key=lambda at: scores[at])[:2])


def test_padding_is_found_and_neither_calibrates_nor_counts(tmp_path: Path) -> None:
    beyond = flowopt.QualityBudget(min_cosine=1.0)
    found = tagger(tmp_path, recovery=NOTHING, budget=beyond).adaptation
    without = tagger(tmp_path, recovery=NOTHING, budget=beyond, padding="none").adaptation
    assert "padding is where attention_mask is 0" in found.notes
    assert found.stages[-1].agreement[0].rows == int(texts(64, seed=2)["attention_mask"].sum())
    assert without.stages[-1].agreement[0].rows == texts(64, seed=2)["attention_mask"].numel()
    assert found.norms[0].tokens < without.norms[0].tokens


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    names: list[set[str]] = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        adapted(folder, force=True, recovery=QUICK, held_out=0.2, seed=7)
        names.append({path.name for path in folder.iterdir()})
    assert names[0] == names[1] and len(names[0]) == 3
    for name in names[0] - {"report.json"}:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_an_original_that_cannot_be_measured_takes_nothing_from_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Inconclusive("nothing ran")

    monkeypatch.setattr("flowopt.workflows.adapt.compared", fails)
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
