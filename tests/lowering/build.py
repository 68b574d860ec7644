"""Build an artifact the way the workflow does, without verification."""

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowopt.lowering.onnx.export import LoweredOnnx, lower_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.lowering.torch import lower_to_torch
from flowopt.program.program import Program
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.interface import interface_of


def report_of(program: Program, target: str = "cpu", level: str = "all") -> str:
    return json.dumps({"target": target, "runtime": {"level": level}, "interface": interface_of(program)})


def build(program: Program, folder: Path) -> tuple[Artifact, LoweredOnnx]:
    """An ONNX artifact, opened."""
    with Staging(folder) as staging:
        lowered = lower_to_onnx(program, staging)
        staging.commit(lowered.model, "model.onnx", report_of(program))
    return Artifact.open(folder), lowered


def build_torch(program: Program, folder: Path) -> Artifact:
    """A torch artifact, opened."""
    with Staging(folder) as staging:
        lowered = lower_to_torch(program, staging)
        staging.commit(lowered.model, "model.pt2", report_of(program, "torch"))
    return Artifact.open(folder, trust="code")


@dataclass(frozen=True, slots=True)
class Built:
    """A program and its ONNX artifact. Tests that change files copy the folder first."""

    program: Program
    artifact: Artifact
    lowered: LoweredOnnx
    folder: Path


@functools.cache
def built(make: Callable[[], Program]) -> Built:
    """The artifact of a model, built once per session: torch's exporter needs a second for any model."""
    folder = Path(_keep(tempfile.TemporaryDirectory())) / "artifact"
    program = make()
    artifact, lowered = build(program, folder)
    return Built(program, artifact, lowered, folder)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _keep(folder: tempfile.TemporaryDirectory[str]) -> str:
    _kept.append(folder)
    return folder.name
