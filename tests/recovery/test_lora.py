"""Distillation by low-rank adapters: the base stays, and what is merged computes what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import UserError
from flowopt.recovery.data.open_data import open_data
from flowopt.recovery.distill import recover
from flowopt.recovery.lora import attach_low_rank
from flowopt.recovery.recovered import Recovered
from flowopt.recovery.settings import LoraLayers, RecoverySettings
from flowopt.recovery.trainable import Trainable, trained_parameters
from tests.recovery.tiny_attention import attentions, linear_student, tagger_program, texts

SETTINGS: dict[str, Any] = {"steps": 12, "learning_rate": 1e-2, "loss": "mse", "evaluate_every": 4, "lora_rank": 2}
PROJECTIONS = [f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("q", "k", "v", "out")]


def attached(student: Trainable, layers: LoraLayers = "attention") -> tuple[str, ...]:
    return attach_low_rank(student, rank=2, alpha=8.0, layers=layers, seed=3)


def disturbed(student: Trainable) -> None:
    """As if the adapters had been trained."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.tensors.adapters.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def output(student: Trainable) -> Tensor:
    with torch.no_grad():
        (found,) = student(texts(4, seed=1))[0].values()
    return torch.as_tensor(found)


def distilled(checkpoint: Path | None = None, *, resume: bool = False, **changed: Any) -> tuple[Recovered, Trainable]:
    program = tagger_program()
    student = linear_student(program)
    data = open_data(texts(80, seed=5), program.interface, batch_size=8, held_out=0.2, seed=5)
    settings = RecoverySettings(**(SETTINGS | {"features": tuple(attentions(program))} | changed))
    return recover(student, program, data, settings, checkpoint=checkpoint, resume=resume), student


def test_at_first_the_student_computes_what_it_did() -> None:
    student, plain = linear_student(), linear_student()
    attached(student)
    assert torch.equal(output(student), output(plain))


def test_the_projections_around_attention_have_adapters_or_all_linear_layers() -> None:
    assert sorted(attached(linear_student())) == sorted(PROJECTIONS)
    every = {*PROJECTIONS, "head.weight", *(f"blocks.{b}.{layer}.weight" for b in (0, 1) for layer in ("up", "down"))}
    assert set(attached(linear_student(), "all")) == every


def test_attention_that_was_not_linearized_has_them_too() -> None:
    assert sorted(attached(Trainable(tagger_program(), padding="mask"))) == sorted(PROJECTIONS)


def test_the_base_is_frozen_and_leaves_are_trained() -> None:
    student = linear_student()
    attached(student)
    trained = trained_parameters(student)
    assert len(trained) == 2 * len(PROJECTIONS) + len(attentions(student.program))
    assert all(not p.requires_grad for name, p in student.tensors.named_parameters() if "adapters" not in name)


def test_merged_weights_compute_what_the_adapters_did() -> None:
    student = linear_student()
    attached(student)
    disturbed(student)
    before, untrained = output(student), output(linear_student())
    program = student.trained_program()
    student.tensors.merge()
    assert not torch.allclose(before, untrained, atol=1e-2)
    torch.testing.assert_close(output(student), before, atol=1e-10, rtol=1e-10)  # float64, the sum in another order
    assert all(torch.equal(program.tensors[name], t) for name, t in student.trained_program().tensors.items())
    assert not len(student.tensors.adapters) and all(p.requires_grad for p in student.parameters())


def test_a_weight_of_sixteen_bits_is_rounded_once() -> None:
    program = tagger_program(torch.bfloat16)
    student = Trainable(program, padding="mask")
    attached(student)
    with torch.no_grad():
        for parameter in student.tensors.adapters.parameters():
            parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(7))
    name = PROJECTIONS[0]
    a, b = (student.get_parameter(f"tensors.adapters./blocks/0/q/weight.{part}").double() for part in "ab")
    wanted = (program.tensors[name].double() + 4.0 * b @ a).to(torch.bfloat16)
    assert torch.equal(student.trained_program().tensors[name], wanted)
    student.tensors.merge()
    assert torch.equal(student.trained_program().tensors[name], wanted)


def test_distillation_changes_only_what_has_adapters() -> None:
    found, student = distilled()
    program, trained = tagger_program(), student.trained_program()
    changed = {name for name in program.tensors if not torch.equal(program.tensors[name], trained.tensors[name])}
    assert changed == set(PROJECTIONS)
    assert found.best_loss < 0.9 * found.start_loss
    for name in changed:
        difference = trained.tensors[name] - program.tensors[name]
        assert int(torch.linalg.matrix_rank(difference, atol=1e-9)) == 2


def test_a_resumed_run_gives_the_same_numbers(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole, once = distilled()
    path = tmp_path / "state"
    # One that was killed: its schedule is that of all steps.
    distilled(path, time_limit_seconds=1e-9)
    again, twice = distilled(path, resume=True)
    judged = {one.step: one.held_out for one in again.history}
    # It was judged once more than the other, when it ended.
    assert judged.keys() == {0, 1, 4, 8, 12}
    assert {one.step: one.held_out for one in whole.history}.items() < judged.items()
    assert all(torch.equal(twice.state_dict()[name], tensor) for name, tensor in once.state_dict().items())


def test_a_checkpoint_of_another_rank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    distilled(path, time_limit_seconds=1e-9)
    with pytest.raises(UserError, match="lora_rank=2, now 3"):
        distilled(path, resume=True, lora_rank=3)


def test_a_model_without_linear_layers_is_refused() -> None:
    program = flowopt.capture(nn.LayerNorm(4).eval(), (torch.ones(2, 4),))
    with pytest.raises(UserError, match="no linear layer around attention"):
        attached(Trainable(program))
    with pytest.raises(UserError, match="no linear layer that"):
        attached(Trainable(program), "all")


@pytest.mark.parametrize("changed", [{"lora_rank": -1}, {"lora_alpha": 0.0}, {"lora_layers": "none"}])
def test_settings_that_mean_nothing_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changed))):
        RecoverySettings(**changed)
