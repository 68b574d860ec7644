"""Distillation: what it reaches, when it ends, and what it leaves behind."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flowopt.errors import Diverged, UserError
from flowopt.recovery.convergence import require_finite
from flowopt.recovery.distill import recover
from flowopt.recovery.objective import Objective
from flowopt.recovery.recovered import Progress
from flowopt.recovery.run_state import RunState
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.trainable import Trainable
from tests.recovery.tiny_recovery import SETTINGS, recovered, tiny_data, tiny_student
from tests.recovery.tiny_transformer import tiny_program


def held_out_loss(student: Trainable) -> float:
    program = tiny_program()
    objective = Objective(student, program, RecoverySettings(**SETTINGS))
    batches = list(tiny_data(program).held_out())
    with torch.no_grad():
        total = sum(float(objective(batch.inputs, batch.extra)) * batch.samples for batch in batches)
    return total / sum(batch.samples for batch in batches)


@pytest.mark.parametrize("loss", ["mse", "kl", "cosine", "tests.recovery.tiny_recovery:label_loss"])
def test_training_brings_the_student_nearer_to_its_teacher(loss: str) -> None:
    found, _ = recovered(loss=loss, steps=16)
    assert found.stopped == "steps" and found.steps == 16
    assert found.best_loss < 0.9 * found.start_loss


def test_the_student_is_left_in_eval_mode_with_the_state_of_the_best_evaluation() -> None:
    found, student = recovered()
    assert not student.training
    assert found.best_loss == min(evaluation.held_out for evaluation in found.history)
    assert held_out_loss(student) == pytest.approx(found.best_loss, rel=1e-12)  # the same operators in float64
    assert [evaluation.step for evaluation in found.history] == [0, 4, 8, 12]


def test_the_teacher_keeps_its_tensors() -> None:
    program = tiny_program()
    before = {name: tensor.clone() for name, tensor in program.tensors.items()}
    recover(tiny_student(program), program, tiny_data(program), RecoverySettings(**(SETTINGS | {"steps": 2})))
    assert all(torch.equal(program.tensors[name], tensor) for name, tensor in before.items())


def test_features_are_compared_beside_the_outputs() -> None:
    found, _ = recovered(steps=1)
    program = tiny_program()
    name = next(n.name for n in program.graph.nodes if n.target is torch.ops.aten.gelu.default)
    more, _ = recovered(steps=1, features=(name,), feature_weight=2.0)
    assert more.start_loss > found.start_loss


def test_it_ends_when_nothing_gets_better_and_gives_back_the_state_before_training() -> None:
    untouched = tiny_student(tiny_program()).state_dict()
    found, student = recovered(steps=40, learning_rate=0.3, clip=0.0, warmup=0.0, evaluate_every=2, patience=2)
    assert (found.stopped, found.steps, found.best_step) == ("patience", 4, 0)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in student.state_dict().items())


def test_patience_begins_when_the_last_norm_is_swapped() -> None:
    worse: dict[str, Any] = {
        "learning_rate": 0.3,
        "clip": 0.0,
        "warmup": 0.0,
        "divergence": 1e9,
        "evaluate_every": 2,
        "patience": 2,
    }
    found, _ = recovered(schedule="one-at-a-time", swap_share=0.5, steps=20, **worse)
    # Of five norms in ten steps, the last comes at the eighth: the evaluations there and after the tenth count.
    assert (found.stopped, found.steps, found.best_step) == ("patience", 10, 0)


def test_a_loss_that_grows_far_above_its_start_ends_it() -> None:
    with pytest.raises(Diverged, match="times the start's") as caught:
        recovered(steps=60, learning_rate=0.9, clip=0.0, warmup=0.0, evaluate_every=60)
    assert "a smaller learning rate, such as 0.3 instead of 0.9" in str(caught.value)


def test_a_loss_that_is_no_number_ends_it_with_the_best_state() -> None:
    program = tiny_program()
    student = tiny_student(program)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    settings = RecoverySettings(**(SETTINGS | {"loss": "tests.recovery.tiny_recovery:broken_loss"}))
    with pytest.raises(Diverged, match="the loss at step 1 is nan"):
        recover(student, program, tiny_data(program), settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_norms_are_swapped_one_after_another_and_judged_all_together() -> None:
    told: list[Progress] = []
    found, _ = recovered(schedule="one-at-a-time", swap_share=0.5, steps=20, on_progress=told.append)
    together, _ = recovered(steps=1)
    assert [p.swapped for p in told] == [1, 1, 2, 2, 3, 3, 4, 4] + [5] * 12
    assert found.start_loss == together.start_loss


def test_statistics_stand_still_in_the_last_part() -> None:
    program = tiny_program()
    student = tiny_student(program)
    seen: list[torch.Tensor] = []
    leaf = next(iter(student.leaves.values()))
    settings = RecoverySettings(**(SETTINGS | {"evaluate_every": 12}))
    recover(
        student,
        program,
        tiny_data(program),
        settings,
        on_progress=lambda _: seen.append(leaf.get_buffer("running").clone()),
    )
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    # Twelve steps, a quarter settled: the tenth is the first that leaves them alone. The last evaluation may put an
    # earlier state back only after the last report.
    assert moved == [True] * 8 + [False] * 3


def test_a_time_limit_ends_it_with_an_evaluation() -> None:
    found, _ = recovered(time_limit_seconds=1e-6)
    assert (found.stopped, found.steps) == ("time", 1)
    assert [evaluation.step for evaluation in found.history] == [0, 1]


def test_a_student_without_leaves_is_trained_too() -> None:
    program = tiny_program()
    student = Trainable(program, padding="mask")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    found = recover(student, program, tiny_data(program), RecoverySettings(**SETTINGS))
    assert found.best_loss < 0.9 * found.start_loss


def test_what_cannot_be_recovered_is_refused(tmp_path: Path) -> None:
    program = tiny_program()
    with pytest.raises(UserError, match="nothing of the model is trained"):
        recover(Trainable(program, frozen=program.tensors), program, tiny_data(program), RecoverySettings())
    with pytest.raises(UserError, match="no output 'scores' to compare"):
        recovered(outputs=("scores",))
    with pytest.raises(UserError, match="the student has no node 'nowhere' to compare"):
        recovered(features=("nowhere",))
    with pytest.raises(UserError, match="it must name every swapped norm once"):
        recovered(order=("layer_norm",))
    with pytest.raises(UserError, match="no loss 'kl2'"):
        recovered(loss="kl2")
    with pytest.raises(UserError, match="steps=0: it must be at least 1"):
        recovered(steps=0)
    with pytest.raises(UserError, match="nothing to resume from"):
        recovered(resume=True)


def test_a_teacher_that_gives_no_numbers_or_does_not_run_is_told_of_by_batch() -> None:
    program, settings = tiny_program(), RecoverySettings(**SETTINGS)
    name = next(name for name, tensor in program.tensors.items() if tensor.dim() == 2)
    stored = program.tensors[name]
    for broken, said in ((stored * torch.nan, "gives NaN for sample 0 of"), (stored[:, 1:], "does not run on")):
        teacher = program.copy()
        teacher.tensors[name] = broken
        with pytest.raises(UserError, match=f"{said} batch 0 of the data to choose the best state by"):
            recover(tiny_student(program), teacher, tiny_data(program), settings)


def test_an_attention_that_diverges_is_told_nothing_of_norms() -> None:
    state, settings = RunState(), RecoverySettings(**SETTINGS)
    with pytest.raises(Diverged) as caught:
        require_finite(state, settings, math.nan, "the loss", of_attention=True)
    assert "--keep-softmax" in caught.value.hint
    assert "norm" not in caught.value.hint and "one-at-a-time" not in caught.value.hint
    with pytest.raises(Diverged, match="fewer norms"):
        require_finite(state, settings, math.nan, "the loss")
