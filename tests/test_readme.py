"""The README's commands run as they stand, and what it says of the command line is so."""

import shlex
from pathlib import Path

import pytest

from flowopt.cli.main import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()

MY_MODEL = """
import torch
from torch import nn

def factory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(3600), nn.Linear(3600, 2))
    for tensor in (*model.parameters(), model[1].running_mean):
        tensor.data.normal_(0, 0.2)
    return {
        "module": model.eval(),
        "args": (torch.randn(2, 3, 32, 32),),
        "dynamic": {"input": {0: "batch"}},
        "dims": {"batch": (1, 64)},
    }
"""


def commands() -> list[str]:
    """Lines of the section "Use it" that a user pastes, without their remarks."""
    section = README.split("## Use it")[1].split("\n## ")[0]
    lines = [line.split("#")[0].strip() for line in section.splitlines()]
    return [line for line in lines if line.startswith("flowopt ")]


def test_the_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    monkeypatch.chdir(tmp_path)
    found = commands()
    assert len(found) >= 4
    for command in found:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
    assert (tmp_path / "out" / "model.onnx").exists()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    block = README.split("## Try it")[1].split("```")[1]
    wanted = [line.split()[1] for line in block.strip().splitlines()]
    assert wanted == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in wanted)
