"""Die, or fail, at every operation on the disk: the artifact is always the old one or the new one, whole."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopt.runtime.artifact import Artifact
from tests.lowering import models
from tests.lowering.build import Built, build_torch, built, report_of
from tests.lowering.publish import LAST, REPORT, counted, publish

ROOT = Path(__file__).resolve().parents[2]


class Died(BaseException):
    """Stands for an interrupt: not an Exception."""


def killed(source: Path, model_name: str, folder: Path, at: int) -> bool:
    """Publish in a process that dies at an operation. True when it died."""
    command = [sys.executable, "-m", "tests.lowering.publish", str(source), model_name, str(folder), str(at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 9


def which(folder: Path, old: Built, new: Built) -> str:
    """``old`` or ``new``, after running it: its own numbers, and its own report."""
    artifact = Artifact.open(folder)
    level = artifact.report["runtime"]
    if artifact.model_path.read_bytes() == (old.folder / "model.onnx").read_bytes():
        assert level == {"level": "all"}
        require_runs(artifact, old)
        return "old"
    assert level == {"level": "basic"}
    require_runs(artifact, new)
    return "new"


def require_runs(artifact: Artifact, built: Built) -> None:
    torch.manual_seed(0)
    example = {name: torch.as_tensor(value) for name, value in built.program.example.items()}
    got, wanted = artifact.run(**example), built.artifact.run(**example)
    assert isinstance(got, Tensor) and isinstance(wanted, Tensor)
    # The same nodes; only ONNX Runtime's level differs.
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def old() -> Iterator[Built]:
    yield built(models.attention)


@pytest.fixture
def new() -> Iterator[Built]:
    made = built(models.tied)
    (made.folder / REPORT).write_text(report_of(made.program, level="basic"))
    yield made


def test_killed_at_every_operation(tmp_path: Path, old: Built, new: Built) -> None:
    seen = []
    for at in range(LAST):
        folder = tmp_path / str(at)
        shutil.copytree(old.folder, folder)
        if not killed(new.folder, "model.onnx", folder, at):
            break
        seen.append(which(folder, old, new))
        publish(new.folder, "model.onnx", folder)
        assert {f.name for f in folder.iterdir()} == {"model.onnx", "report.json", *new.lowered.weights}
    assert len(seen) > 15 and set(seen) == {"old", "new"}
    # One commit point: old up to it, new from it on.
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("failure", [Died(), OSError(28, "No space left on device")])
def test_failing_at_every_operation(
    tmp_path: Path, old: Built, new: Built, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise failure

    seen = []
    for at in range(LAST):
        folder = tmp_path / str(at)
        shutil.copytree(old.folder, folder)
        try:
            with monkeypatch.context() as context:
                counted(lambda name, value: context.setattr(os, name, value), at, fail)
                publish(new.folder, "model.onnx", folder)
        except BaseException as error:
            if error is not failure and error.__cause__ is not failure:
                raise
        else:
            break
        seen.append(which(folder, old, new))
        publish(new.folder, "model.onnx", folder)
        assert {f.name for f in folder.iterdir()} == {"model.onnx", "report.json", *new.lowered.weights}
    assert len(seen) > 15 and seen == sorted(seen, reverse=True)


def test_killed_on_the_first_build_leaves_no_artifact_or_a_whole_one(tmp_path: Path, new: Built) -> None:
    for at in range(0, LAST, 3):
        folder = tmp_path / str(at)
        if not killed(new.folder, "model.onnx", folder, at):
            break
        if (folder / "model.onnx").exists():
            require_runs(Artifact.open(folder), new)
        publish(new.folder, "model.onnx", folder)
        assert {f.name for f in folder.iterdir()} == {"model.onnx", "report.json", *new.lowered.weights}


def test_killed_while_the_target_changes(tmp_path: Path, old: Built) -> None:
    build_torch(old.program, tmp_path / "torch")
    archive = tmp_path / "torch" / "model.pt2"
    (archive.parent / REPORT).write_text(json.dumps({"target": "torch"}))
    seen = []
    for at in range(LAST):
        folder = tmp_path / str(at)
        shutil.copytree(old.folder, folder)
        if not killed(archive.parent, "model.pt2", folder, at):
            break
        artifact = Artifact.open(folder, trust="code")
        assert (
            artifact.report["target"]
            == artifact.target
            == {".onnx": "cpu", ".pt2": "torch"}[artifact.model_path.suffix]
        )
        require_runs(artifact, old)
        seen.append(artifact.target)
        publish(archive.parent, "model.pt2", folder)
        assert {f.name for f in folder.iterdir()} == {"model.pt2", "report.json"}
    assert set(seen) == {"cpu", "torch"} and seen == sorted(seen)
