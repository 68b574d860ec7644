"""``--form recurrent`` on the command line."""

import json
from pathlib import Path

from tests.cli.command import flowopt, model


def test_a_causal_model_is_written_as_a_step_and_verified_as_one() -> None:
    ran = flowopt("optimize", model("summing"), "--form", "recurrent", "-o", "step")
    assert (ran.code, ran.err) == (0, "")
    assert "a step along 'time': one token in and out, 2 tensors carried; equivalent to the model" in ran.out
    recurrence = json.loads(Path("step/report.json").read_text())["recurrence"]
    assert [(s["input"], s["output"]) for s in recurrence["states"]] == [
        ("state_0", "next_state_0"),
        ("state_1", "next_state_1"),
    ]
    again = flowopt("verify", model("summing"), "step")
    assert again.code == 0
    assert "equivalent" in again.first


def test_a_model_that_carries_nothing_is_refused() -> None:
    ran = flowopt("optimize", model("folding"), "--form", "recurrent", "-o", "step")
    assert ran.code == 2
    assert "token" in ran.err
    assert not Path("step").exists()


def test_a_sequence_without_a_step_is_a_mistake() -> None:
    ran = flowopt("optimize", model("summing"), "--sequence", "time")
    assert ran.code == 2
    assert "--form recurrent --sequence time" in ran.err
