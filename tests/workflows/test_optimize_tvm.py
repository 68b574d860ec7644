"""Optimize for TVM: verified as compiled, as imported where that decides, and never committed when it differs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowopt
from flowopt.lowering.staging import Staging
from flowopt.lowering.tvm.lower import Compilation, LoweredTvm
from flowopt.program.program import Program
from flowopt.runtime.relax_module import RelaxRunner, open_relax
from flowopt.workflows import lower_tvm
from tests.lowering.tvm.small_library import block, compiled


def _moved(runner: RelaxRunner) -> Any:
    """A runner whose first output is off by far more than rounding."""

    class Moved:
        def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = runner.run(inputs)
            return found | {"y": found["y"] * 1.01}

    return Moved()


def _stand_ins(monkeypatch: pytest.MonkeyPatch, *, wrong: tuple[str, ...]) -> list[Compilation]:
    """Compile nothing: the shared library stands for every kind, and kinds that are wrong give wrong numbers."""
    asked: list[Compilation] = []
    library = compiled().folder / "model.so"

    def lower(program: Program, staging: Staging, wanted: Compilation) -> LoweredTvm:
        asked.append(wanted)
        model = staging.temporary(".so")
        model.write_bytes(library.read_bytes())
        staging.weights([next(compiled().folder.glob("weights.*")).read_bytes()])
        return LoweredTvm(model, {wanted.kind: 1})

    def opened(path: Path, **_: object) -> Any:
        return _moved(open_relax(path)) if asked[-1].kind in wrong else open_relax(path)

    monkeypatch.setattr(lower_tvm, "lower_to_tvm", lower)
    monkeypatch.setattr(lower_tvm, "open_relax", opened)
    return asked


def test_the_library_is_verified_and_runs_like_the_model() -> None:
    one = compiled()
    assert one.result.report.outcome == "verified"
    assert [level.level for level in one.result.report.lowered] == ["compiled"]
    assert one.result.artifact is not None
    x, mask = torch.randn(9, 24), torch.ones(9, dtype=torch.bool)
    found = one.result.artifact.run(x, mask)
    assert isinstance(found, dict)
    with torch.no_grad():
        assert torch.allclose(found["y"], one.module(x, mask)["y"], atol=1e-5)
    report = json.loads((one.folder / "report.json").read_text())
    assert report["target"] == "tvm"
    assert report["runtime"]["verified_on"] == "cpu"
    assert report["census_lowered"]
    assert "apache-tvm" in report["versions"]


def test_kernels_that_differ_give_way_to_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _stand_ins(monkeypatch, wrong=("scheduled",))
    result = flowopt.optimize(block()[1], target="tvm", folder=tmp_path / "out")
    assert [wanted.kind for wanted in asked] == ["scheduled", "plain"]
    assert result.report.outcome == "verified"
    assert [(one.level, bool(one.verdict)) for one in result.report.lowered] == [
        ("imported", True),
        ("compiled", False),
    ]
    assert "plain ones, which are slow" in result.report.warnings[0]
    assert result.report.census_lowered == {"plain": 1}


def test_an_import_that_differs_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_ins(monkeypatch, wrong=("scheduled", "plain"))
    result = flowopt.optimize(block()[1], target="tvm", folder=tmp_path / "out")
    assert result.report.outcome == "different"
    assert [(one.level, bool(one.verdict)) for one in result.report.lowered] == [
        ("compiled", False),
        ("imported", False),
    ]
    assert result.artifact is None
    assert not (tmp_path / "out").exists()


def test_level_full_judges_the_import_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _stand_ins(monkeypatch, wrong=())
    flowopt.optimize(block()[1], target="tvm", folder=tmp_path / "out", level="full", passes="none")
    assert [wanted.kind for wanted in asked] == ["scheduled", "plain"]


def test_without_a_gpu_the_import_is_judged_and_the_kernels_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _stand_ins(monkeypatch, wrong=())
    monkeypatch.setattr(lower_tvm, "cuda_device_available", lambda: False)
    monkeypatch.setattr("flowopt.workflows.optimize.require_toolchain", lambda device, arch: None)
    result = flowopt.optimize(block()[1], target="tvm-cuda", arch="sm_90", folder=tmp_path / "out")
    assert asked == [Compilation("cuda", "sm_90"), Compilation(kind="plain")]
    assert result.report.outcome == "compiled-not-run"
    assert not result.report.lowered
    assert (tmp_path / "out" / "model.so").is_file()


def test_without_a_gpu_a_wrong_import_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_ins(monkeypatch, wrong=("plain",))
    monkeypatch.setattr(lower_tvm, "cuda_device_available", lambda: False)
    monkeypatch.setattr("flowopt.workflows.optimize.require_toolchain", lambda device, arch: None)
    result = flowopt.optimize(block()[1], target="tvm-cuda", arch="sm_90", folder=tmp_path / "out")
    assert result.report.outcome == "different"
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_target_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flowopt.optimize(block()[1], target="torch", folder=tmp_path / "out", verify="off")
    assert (tmp_path / "out" / "model.pt2").is_file()
    _stand_ins(monkeypatch, wrong=())
    flowopt.optimize(block()[1], target="tvm", folder=tmp_path / "out", verify="off")
    names = sorted(path.name.split(".")[0] + path.suffix for path in (tmp_path / "out").iterdir())
    assert names == ["model.so", "report.json", "weights.data"]


def test_nothing_is_verified_when_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_ins(monkeypatch, wrong=("scheduled",))
    result = flowopt.optimize(block()[1], target="tvm", folder=tmp_path / "out", verify="off")
    assert result.report.outcome == "not-verified"
    assert result.verdict.outcome is flowopt.Outcome.NOT_VERIFIED
