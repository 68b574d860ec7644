"""A recovery that was stopped goes on as if it had not been."""

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowopt.errors import MalformedModel, UserError
from flowopt.recovery.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from flowopt.recovery.data.open_data import open_data
from flowopt.recovery.distill import recover
from flowopt.recovery.identity import identity_of
from flowopt.recovery.recovered import Progress
from flowopt.recovery.settings import RecoverySettings
from tests.recovery.tiny_processes import run_alone, run_together, run_until_killed, said_together
from tests.recovery.tiny_recovery import SAMPLES, SETTINGS, recovered, tiny_data, tiny_student
from tests.recovery.tiny_transformer import inputs, program_of, tiny_program, tiny_transformer

# Every norm by a published one, with statistics of its own.
PUBLISHED = 'leaves="published"'


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(step: int, checkpoint: Path, **changed: Any) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    with pytest.raises(Killed):
        recovered(checkpoint, on_progress=stop, **changed)


@pytest.mark.parametrize("optimizer", ["adamw", "adamp", "sgdp"])
def test_resumed_is_uninterrupted_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = {
        "optimizer": optimizer,
        "schedule": "one-at-a-time",
        "swap_share": 0.8,
        "weight_decay": 0.01,
    }
    whole, wanted = recovered(**changed)
    killed_at(6, tmp_path / "run.safetensors", **changed)
    found, student = recovered(tmp_path / "run.safetensors", resume=True, **changed)
    assert found.history == whole.history and found.best_step > 4
    state = student.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.state_dict().items())


def test_without_a_checkpoint_yet_resuming_begins(tmp_path: Path) -> None:
    found, _ = recovered(tmp_path / "deep" / "run.safetensors", resume=True, steps=1)
    assert found.steps == 1 and (tmp_path / "deep" / "run.safetensors").is_file()


def test_a_finished_run_is_not_trained_further_and_still_knows_its_best_state(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    worse: dict[str, Any] = {"steps": 4, "evaluate_every": 2, "learning_rate": 0.3, "clip": 0.0, "warmup": 0.0}
    first, student = recovered(path, **worse)
    told: list[Progress] = []
    again, same = recovered(path, resume=True, on_progress=told.append, **worse)
    assert (again.best_step, again.best_loss, again.steps, told) == (0, first.start_loss, 4, [])
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in student.state_dict().items())


def test_a_checkpoint_is_not_overwritten_by_a_new_run(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    recovered(path, steps=1)
    before = path.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        recovered(path, steps=1)
    assert path.read_bytes() == before


def test_resuming_with_something_else_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    recovered(path, steps=4)
    with pytest.raises(UserError, match="other settings: learning_rate=0.003, now 0.01, seed=0, now 1"):
        recovered(path, resume=True, steps=4, learning_rate=0.01, seed=1)
    program, settings = tiny_program(), RecoverySettings(**(SETTINGS | {"steps": 4}))
    other = program_of(tiny_transformer(seed=4))
    with pytest.raises(UserError, match="another original model"):
        recover(tiny_student(program), other, tiny_data(program), settings, checkpoint=path, resume=True)
    student = tiny_student(program)
    del student.leaves["layer_norm_4"]
    student.active = frozenset(student.leaves)
    with pytest.raises(UserError, match="another model, or other swapped norms or linearized attention"):
        recover(student, program, tiny_data(program), settings, checkpoint=path, resume=True)
    with pytest.raises(UserError, match="other data"):
        data = tiny_data(program, seed=6)
        recover(tiny_student(program), program, data, settings, checkpoint=path, resume=True)


def test_any_sample_that_differs_makes_other_data() -> None:
    program, settings = tiny_program(), RecoverySettings(**SETTINGS)
    student, arrays = tiny_student(program), inputs(SAMPLES, seed=5)

    def digest(change: int | None) -> object:
        changed = {name: array.clone() for name, array in arrays.items()}
        if change is not None:
            changed["ids"][change, 0] += 1
        data = open_data(changed, program.interface, batch_size=8, held_out=0.2)
        return identity_of(student, program, data, settings)["data"]

    assert digest(None) == digest(None)
    assert len({digest(change) for change in (None, 0, 23, 41, SAMPLES - 1)}) == 5


def test_a_checkpoint_with_something_else_in_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    recovered(path, steps=1)
    whole = read_checkpoint(path)
    changes: tuple[Callable[[Checkpoint], object], ...] = (
        lambda c: c.facts.pop("identity"),
        lambda c: c.facts["identity"].pop("teacher"),
        lambda c: c.facts["identity"].update(settings=[]),
        lambda c: c.facts.pop("optimizer"),
        lambda c: c.facts.update(optimizer={"groups": [], "numbers": {}}),
        lambda c: c.facts.update(history=[]),
        lambda c: c.facts["history"][0].pop("step"),
        lambda c: c.facts["state"].update(step="1"),
        lambda c: c.facts["state"].update(colour=1),
        lambda c: c.tensors.pop("random/cpu"),
        lambda c: c.tensors.pop(next(name for name in c.tensors if name.startswith("student/"))),
        lambda c: c.tensors.pop(next(name for name in c.tensors if name.startswith("best/"))),
    )
    for change in changes:
        damaged = Checkpoint(dict(whole.tensors), copy.deepcopy(whole.facts))
        change(damaged)
        write_checkpoint(path, damaged)
        with pytest.raises(MalformedModel, match="is no checkpoint of a recovery"):
            recovered(path, resume=True, steps=1)


def test_a_longer_time_limit_is_no_other_setting(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    cut, _ = recovered(path, time_limit_seconds=1e-6)
    found, _ = recovered(path, resume=True)
    assert (cut.steps, found.steps, found.stopped) == (1, 12, "steps")


@pytest.mark.slow
def test_killed_and_resumed_in_processes_is_uninterrupted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    whole = run_alone(tmp_path / "whole.safetensors", PUBLISHED)
    assert run_until_killed(checkpoint, 6, PUBLISHED) == -signal.SIGKILL
    resumed = run_alone(tmp_path / "result.safetensors", PUBLISHED, checkpoint=checkpoint, resume=True)
    assert whole.keys() == resumed.keys() and "history" in whole
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_processes_reach_what_one_does(tmp_path: Path) -> None:
    one_at_a_time = ('schedule="one-at-a-time"', "swap_share=0.5")
    alone = run_alone(tmp_path / "alone.safetensors", PUBLISHED, *one_at_a_time)
    together = run_together(tmp_path / "together.safetensors", PUBLISHED, *one_at_a_time)
    assert alone.keys() == together.keys() and alone["history"].min() < alone["history"][0]
    for name, tensor in alone.items():
        # Sums of two halves in float64, over a few steps.
        torch.testing.assert_close(together[name], tensor, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_processes_that_train_every_norm_at_once_do_not_warn_of_unused_tensors() -> None:
    assert "find_unused_parameters" not in said_together(PUBLISHED, "steps=3")
