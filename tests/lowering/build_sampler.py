"""Build a sampler's artifact, each part exported once per session: torch's exporter needs a second for any of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowopt.ir.loop_spec import Form
from flowopt.lowering.onnx import sampler
from flowopt.lowering.onnx.export import LoweredOnnx, onnx_model
from flowopt.lowering.onnx.sampler import lower_sampler_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.interface import described_interface
from flowopt.runtime.onnx_session import Level

# Programs are no keys; kept beside their models, they keep their addresses.
_exported: dict[tuple[int, int, bool], tuple[Program, Any, tuple[str, ...]]] = {}


def exported_once(program: Program, *, opset: int, fuses: bool) -> tuple[Any, tuple[str, ...]]:
    """``onnx_model``, remembered."""
    key = (id(program), opset, fuses)
    if key not in _exported:
        _exported[key] = (program, *onnx_model(program, opset=opset, fuses=fuses))
    _, model, names = _exported[key]
    return model.clone(), names


@pytest.fixture
def one_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test lower one sampler in many forms without exporting it again."""
    monkeypatch.setattr(sampler, "onnx_model", exported_once)


@dataclass(frozen=True, slots=True)
class BuiltSampler:
    """A sampler's artifact and how it was lowered."""

    artifact: Artifact
    lowered: LoweredOnnx
    folder: Path

    @property
    def model_bytes(self) -> int:
        return (self.folder / "model.onnx").stat().st_size

    @property
    def weight_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.lowered.weights)


def build_sampler(
    program: SamplerProgram, folder: Path, form: Form = "auto", *, level: Level = "all", fuses: bool = True
) -> BuiltSampler:
    """The artifact, opened."""
    report = {"runtime": {"level": level}, "interface": described_interface(program.interface)}
    with Staging(folder) as staging:
        lowered = lower_sampler_to_onnx(program, staging, form=form, fuses=fuses)
        staging.commit(lowered.model, "model.onnx", json.dumps(report))
    return BuiltSampler(Artifact.open(folder, huge_pages=False), lowered, folder)
