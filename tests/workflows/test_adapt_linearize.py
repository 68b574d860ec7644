"""``flowopt.adapt`` linearizes the attention of trained models, and says how far what it wrote is from the original."""

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import UserError
from flowopt.ir.text import graph_text, operator_census
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.report.to_json import plain
from flowopt.workflows.adapting.attention_speed import AttentionSpeed
from flowopt.workflows.adapting.judged_attention import JudgedAttention, judged_attention
from flowopt.workflows.adapting.linear_choice import LinearChoice
from tests.workflows.adapting.tiny import captured, post_norm, post_norm_program, texts
from tests.workflows.adapting.tiny_runs import SETTINGS

STAGES = ["mean-of-values", "zero-shot", "transfer", "distill"]
PLAN = flowopt.RecoveryPlan(settings=SETTINGS, transfer_steps=60)
NOTHING = flowopt.RecoveryPlan(steps=())
# Nothing keeps it: what would be lowered is held back, which takes longer than all the rest.
UNREACHABLE = flowopt.QualityBudget(min_cosine=1.0)


@pytest.fixture(autouse=True, scope="module")
def quickly_judged() -> Iterator[None]:
    """Speed refuses nothing, and takes no time to measure; the same choice is judged once."""
    found: dict[str, JudgedAttention] = {}

    def once(program: Program, data: Data, choice: LinearChoice, **others: Any) -> JudgedAttention:
        key = repr(dataclasses.replace(choice, dry_run=False))
        if program is not post_norm_program() or key not in found:
            found[key] = judged_attention(program, data, choice, **others)
        return dataclasses.replace(found[key], leaves=copy.deepcopy(found[key].leaves))

    with pytest.MonkeyPatch.context() as patched:
        speed = AttentionSpeed(None, "nobody timed it")
        patched.setattr("flowopt.workflows.adapting.judged_attention.attention_speed", lambda *_, **__: speed)
        patched.setattr("flowopt.workflows.adapting.by_linearization.judged_attention", once)
        yield


def linearized(folder: Path, program: Program | None = None, **changed: Any) -> flowopt.AdaptResult:
    """The tagger with both attentions replaced, by default."""
    given: dict[str, Any] = {
        "linearize": "hedgehog",
        "data": texts(256, seed=1),
        "held_out": texts(64, seed=2),
        "recovery": PLAN,
        "folder": folder,
        "timing": False,
        "target": "torch",
    }
    return flowopt.adapt(post_norm_program() if program is None else program, **(given | changed))


def held_back(folder: Path, **changed: Any) -> flowopt.AdaptResult:
    return linearized(folder, budget=UNREACHABLE, **changed)


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
def done(quickly_judged: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    made = post_norm()
    program = captured(made)
    graph = graph_text(program.graph)
    tensors, state = (copied(tensors) for tensors in (program.tensors, made["module"].state_dict()))
    folder = tmp_path_factory.mktemp("linearized") / "artifact"
    return Done(linearized(folder, program), folder, made["module"], program, graph, tensors, state)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def attentions(program: Program) -> int:
    return operator_census(program.graph)["aten.scaled_dot_product_attention"]


def test_no_softmax_attention_is_left(done: Done) -> None:
    assert (attentions(post_norm_program()), attentions(done.result.program)) == (2, 0)
    assert len(done.result.adaptation.linearized) == 2


def test_the_outcome_is_approximate_and_no_more(done: Done) -> None:
    assert done.result.report is not None and done.result.report.outcome == "approximate"
    assert done.result.adaptation.method == "linearize-attention to hedgehog"


def test_the_stages_begin_with_the_yardstick_and_are_in_the_report(done: Done) -> None:
    assert [stage.name for stage in done.result.adaptation.stages] == STAGES
    stored = json.loads((done.folder / "report.json").read_text())["adaptation"]
    assert stored == plain(done.result.adaptation)
    assert stored["settings"]["recovery"]["steps"] == ["transfer", "distill"]
    assert stored["settings"]["choice"]["to"] == "hedgehog"


def test_each_step_brings_the_outputs_nearer_to_the_original(done: Done) -> None:
    errors = {stage.name: stage.agreement[0].relative_error for stage in done.result.adaptation.stages}
    assert errors["distill"] < errors["transfer"] < errors["zero-shot"] < errors["mean-of-values"]


def test_the_errors_of_attentions_are_told_for_every_stage(done: Done) -> None:
    for layer in done.result.adaptation.layers:
        assert list(layer.errors) == STAGES
        assert layer.errors["transfer"] < layer.errors["zero-shot"] < layer.errors["mean-of-values"]
    first = done.result.adaptation.layers[0]
    # Nothing before the first attention is approximate: its errors are those of the judgement, on other data.
    assert first.errors["zero-shot"] == pytest.approx(first.zero_shot_error, rel=0.2)  # 64 samples beside 256
    assert first.errors["mean-of-values"] == pytest.approx(first.mean_error, rel=0.2)  # 64 samples beside 256


def test_the_losses_of_distillation_are_told(done: Done) -> None:
    assert [step for step, _ in done.result.adaptation.losses] == [0, 15, 30, 45, 60]


def test_the_callers_program_and_module_are_as_they_were(done: Done) -> None:
    assert graph_text(done.program.graph) == done.graph
    for now, before in ((done.program.tensors, done.tensors), (done.module.state_dict(), done.state)):
        assert now.keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in now.items())
    assert not done.module.training and all(p.grad is None for p in done.module.parameters())


def test_the_artifact_computes_the_adapted_program(done: Done) -> None:
    given = texts(64, seed=2)
    assert done.result.artifact is not None
    found, wanted = done.result.artifact.run_named(given)["output"], done.result.program.run_named(given)["output"]
    # Both in float32, with sums in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_frozen_is_what_was_measured(done: Done) -> None:
    given = texts(64, seed=2)
    real = given["attention_mask"] == 1
    found, wanted = done.result.program.run_named(given)["output"], post_norm_program().run_named(given)["output"]
    error = float((found[real] - wanted[real]).norm() / wanted[real].norm())
    stage = done.result.adaptation.stages[-1]
    assert stage.agreement[0].relative_error == pytest.approx(error, rel=1e-4)  # float32, in another order
    assert stage.agreement[0].rows == int(real.sum())


def test_what_stands_at_padding_changes_nothing(done: Done) -> None:
    given = texts(16, seed=3)
    real = given["attention_mask"] == 1
    moved = given | {"input_ids": torch.where(real, given["input_ids"], 7)}
    found, same = (done.result.program.run_named(one)["output"][real] for one in (given, moved))
    assert not torch.equal(given["input_ids"], moved["input_ids"])
    torch.testing.assert_close(found, same, rtol=1e-5, atol=1e-6)  # sums of the same numbers and of zeros


def test_a_layer_that_is_not_asked_for_keeps_softmax(tmp_path: Path) -> None:
    result = held_back(tmp_path, layers="1", recovery=NOTHING)
    assert [layer.decision for layer in result.adaptation.layers] == ["left", "swapped"]
    assert attentions(result.program) == 1
    # Nothing before it was replaced: its value is the original's.
    left, swapped = (layer.errors["zero-shot"] for layer in result.adaptation.layers)
    assert left == 0.0 and swapped > 0.1


def test_a_share_of_the_layers_keeps_softmax(tmp_path: Path) -> None:
    result = held_back(tmp_path, keep_softmax=0.5, recovery=NOTHING)
    assert len(result.adaptation.kept_softmax) == len(result.adaptation.linearized) == attentions(result.program) == 1
    kept, *_ = result.adaptation.kept_softmax
    assert kept.entropy == min(layer.entropy or 1.0 for layer in result.adaptation.layers)


def test_without_recovery_the_model_stays_as_judged(tmp_path: Path) -> None:
    result = held_back(tmp_path, recovery=NOTHING)
    assert [stage.name for stage in result.adaptation.stages] == STAGES[:2]
    tensors = result.program.tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in post_norm_program().tensors.items())


def test_transfer_alone_changes_no_weight_of_the_model(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, steps=("transfer",))
    result = held_back(tmp_path, recovery=plan)
    assert [stage.name for stage in result.adaptation.stages] == STAGES[:3]
    tensors = result.program.tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in post_norm_program().tensors.items())


def test_with_low_rank_only_the_layers_around_attention_change(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, settings=dataclasses.replace(SETTINGS, lora_rank=2))
    result = held_back(tmp_path, recovery=plan)
    before = post_norm_program().tensors
    changed = {name for name in before if not torch.equal(before[name], result.program.tensors[name])}
    assert changed == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("qkv", "out")}
    assert "as matrices of rank 2" in result.adaptation.stages[-1].notes[0]
    errors = {stage.name: stage.agreement[0].relative_error for stage in result.adaptation.stages}
    assert errors["distill"] < errors["transfer"]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, rank: int) -> None:
    torch.set_num_threads(1)
    plan = dataclasses.replace(PLAN, settings=dataclasses.replace(SETTINGS, lora_rank=rank), transfer_steps=10)
    whole = held_back(tmp_path / "artifact", recovery=plan).program

    def killed(step: str) -> None:
        if step.startswith("distilling, step 41 "):
            raise KeyboardInterrupt

    plan = dataclasses.replace(plan, checkpoint=tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        held_back(tmp_path / "artifact", recovery=plan, on_progress=killed)
    steps: list[str] = []
    again = dataclasses.replace(plan, resume=True)
    resumed = held_back(tmp_path / "artifact", recovery=again, on_progress=steps.append).program
    assert next(step for step in steps if step.startswith("distilling")).startswith("distilling, step 31 of 60")
    assert graph_text(resumed.graph) == graph_text(whole.graph)
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())


def test_a_dry_run_judges_and_writes_nothing(tmp_path: Path) -> None:
    result = linearized(tmp_path / "artifact", dry_run=True)
    assert (result.artifact, result.report, result.adaptation.stages) == (None, None, ())
    assert result.program is post_norm_program() and not list(tmp_path.iterdir())
    assert all((layer.zero_shot_error or 1.0) < (layer.mean_error or 0.0) for layer in result.adaptation.layers)
    assert "speed was not measured on torch, and refuses nothing: nobody timed it" in result.adaptation.notes


@pytest.mark.slow
def test_one_after_another_does_it_too(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, settings=dataclasses.replace(SETTINGS, schedule="one-at-a-time"))
    result = held_back(tmp_path, recovery=plan)
    errors = {stage.name: stage.agreement[0].relative_error for stage in result.adaptation.stages}
    assert errors["distill"] < errors["transfer"]


def test_data_that_nothing_is_held_out_of_are_refused_before_any_work(tmp_path: Path) -> None:
    steps: list[str] = []
    with pytest.raises(UserError, match="there is no held-out data"):
        linearized(tmp_path / "artifact", held_out=0, on_progress=steps.append)
    assert not steps
