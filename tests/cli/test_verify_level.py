import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.command import flowopt, model


def signal(path: Path, *shape: int, scale: float = 1.0) -> Path:
    drawn = scale * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    np.savez(path, signal=drawn.numpy())
    return path


def test_full_runs_the_whole_battery_and_says_so() -> None:
    ran = flowopt("verify", model("folding"), model("folding"), "--level", "full")
    assert ran.code == 0, ran.out
    assert ", level full, " in ran.first.replace("(", ", ")
    for case in ("traced[", "longest-batch[batch=64]", "subnormals[", "solo[", "example["):
        assert case in ran.out


def test_an_unknown_level_is_a_usage_error() -> None:
    ran = flowopt("verify", model("folding"), model("folding"), "--level", "thorough")
    assert ran.code == 2 and "quick" in ran.err


def test_a_folder_of_inputs_adds_a_case_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    signal(folder / "a.npz", 2, 3, 6)
    signal(folder / "b.npz", 5, 3, 6)
    ran = flowopt("verify", model("folding"), model("folding"), "--inputs", folder)
    assert ran.code == 0, ran.err
    assert "data:a.npz[batch=2]" in ran.out and "data:b.npz[batch=5]" in ran.out


def test_inputs_that_do_not_fit_are_a_usage_error(tmp_path: Path) -> None:
    ran = flowopt("verify", model("folding"), model("folding"), "--inputs", signal(tmp_path / "x.npz", 2, 4, 6))
    assert ran.code == 2
    assert "signal" in ran.err and "\n  try " in ran.err


def test_the_worst_case_is_saved_and_the_printed_command_replays_it(tmp_path: Path) -> None:
    worst = tmp_path / "worst.npz"
    ran = flowopt("verify", model("folding"), model("other_weights"), "--reproducer", worst)
    assert ran.code == 1
    command = ran.last.removeprefix("the worst case again: ")
    again = flowopt(*shlex.split(command)[1:])
    assert again.code == 1
    assert "data:worst.npz" in again.out


def test_a_reproducer_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    ran = flowopt("verify", model("folding"), model("folding"), "--reproducer", tmp_path / "no" / "worst.npz")
    assert ran.code == 73
    assert ran.err.startswith("flowopt: --reproducer ")


def test_cases_above_the_budget_are_named_and_nothing_is_claimed_without_any() -> None:
    ran = flowopt("verify", model("folding"), model("folding"), "--case-budget", "0")
    assert ran.code == 3
    assert "is above --case-budget 0" in ran.out


def test_the_level_stands_in_the_json(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    flowopt("verify", model("folding"), model("folding"), "--level", "full", "--json", path)
    verdict = json.loads(path.read_text())
    assert verdict["level"] == "full" and len(verdict["cases"]) > 20
    shown = verdict["figures"][0]
    assert {"max_error", "p99_error", "rms_error", "max_ulp", "snr_db", "cosine"} == set(shown["candidate"])
    assert set(shown["original"]) == set(shown["candidate"]) and shown["regime"]


@pytest.mark.parametrize("mode", ["each", "final"])
def test_optimize_takes_the_level(mode: str, tmp_path: Path) -> None:
    ran = flowopt("optimize", model("folding"), "--level", "full", "--verify", mode, "-o", tmp_path / "out")
    assert ran.code == 0, ran.out + ran.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {one["verdict"]["level"] for one in report["lowered"]} == {"full"}
