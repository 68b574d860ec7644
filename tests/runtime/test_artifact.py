"""Opening and running an artifact, and refusing what is none."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from flowopt.errors import MalformedModel, MissingDependency, ModelNotFound, UserError
from flowopt.formats.onnx.containment import CheckedOnnx
from flowopt.lowering.staging import Staging
from flowopt.runtime import artifact as artifact_module
from flowopt.runtime import contents
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.onnx_session import OnnxRunner, open_session
from flowopt.runtime.providers import CUDA_PROVIDER
from tests.lowering import models
from tests.lowering.build import Built, built, report_of


@pytest.fixture
def one() -> Built:
    return built(models.attention)


@pytest.fixture
def copy(one: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one.folder, tmp_path / "copy"))


X = torch.linspace(-1, 1, 2 * 3 * 32).view(2, 3, 32)


def output(artifact: Artifact) -> Tensor:
    result = artifact.run(X)
    assert isinstance(result, Tensor)
    return result


def weights_of(folder: Path) -> Path:
    (found,) = folder.glob("weights.*.data")
    return found


def edit_report(folder: Path, **changes: object) -> None:
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(report | changes))


def test_it_says_what_it_is(one: Built) -> None:
    artifact = Artifact.open(str(one.folder))
    assert artifact.folder == one.folder and artifact.target == "cpu"
    assert [str(i) for i in artifact.inputs] == ["x: float32[batch, length, 32]"]
    assert [o.name for o in artifact.outputs] == ["output"]
    assert artifact.report["interface"]


def test_it_runs_where_it_was_copied(one: Built, copy: Path) -> None:
    assert torch.equal(output(Artifact.open(copy)), output(one.artifact))


def test_wrong_inputs_are_told_what_the_model_takes(one: Built) -> None:
    with pytest.raises(UserError, match=r"x: float32\[batch, length, 32\]"):
        one.artifact.run(X.double())
    with pytest.raises(UserError, match="missing inputs: x"):
        one.artifact.run()


def test_the_recorded_level_is_used(one: Built, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def recording(path: Path, *, level: Any, **options: Any) -> OnnxRunner:
        asked.append(level)
        return open_session(path, level=level, **options)

    monkeypatch.setattr(artifact_module, "open_session", recording)
    edit_report(copy, runtime={"level": "disabled"})
    for _ in range(2):
        output(Artifact.open(copy))
    assert asked == ["disabled", "disabled"]
    edit_report(copy, runtime={"level": "turbo"})
    with pytest.raises(MalformedModel, match="turbo"):
        output(Artifact.open(copy))


def test_without_its_report_it_runs_by_the_models_own_interface(one: Built, copy: Path) -> None:
    for damage in ("{", "[]", json.dumps({"model_sha256": "0" * 64, "interface": {}})):
        (copy / "report.json").write_text(damage)
        artifact = Artifact.open(copy)
        assert artifact.report == {} and artifact.inputs == one.artifact.inputs
        assert torch.equal(output(artifact), output(one.artifact))
    (copy / "report.json").unlink()
    assert torch.equal(output(Artifact.open(copy)), output(one.artifact))


def test_missing_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        Artifact.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(MalformedModel, match="not an artifact"):
            Artifact.open(path)
    for content in (b"", b"text", b"\x08\x0a"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(MalformedModel, match="model.onnx"):
            Artifact.open(tmp_path)


def test_changed_truncated_and_missing_weights_are_found(copy: Path) -> None:
    weights = weights_of(copy)
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(MalformedModel, match="not what its name says"):
        Artifact.open(copy)
    Artifact.open(copy, check_weights=False)
    weights.write_bytes(content[:-1])
    with pytest.raises(MalformedModel, match="bytes, the model reads"):
        Artifact.open(copy, check_weights=False)
    weights.unlink()
    with pytest.raises(MalformedModel, match="missing"):
        Artifact.open(copy)


def test_large_weights_are_not_hashed_unless_asked_but_links_are_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "HASHED_BYTES", 100)
    weights = weights_of(copy)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    Artifact.open(copy)
    with pytest.raises(MalformedModel, match="not what its name says"):
        Artifact.open(copy, check_weights=True)
    (copy / "elsewhere").hardlink_to(weights)
    with pytest.raises(MalformedModel, match="is a link"):
        Artifact.open(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [("location", "../secret"), ("location", "/etc/passwd"), ("location", "secret"), ("offset", "-1"), ("length", "x")],
)
def test_a_model_that_reads_elsewhere_is_refused(copy: Path, key: str, value: str) -> None:
    model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == key).value = value
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(MalformedModel, match=value):
        Artifact.open(copy)


def test_external_data_in_an_attribute_is_found_too(copy: Path) -> None:
    model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
    tensor = onnx.TensorProto(data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL, name="t")
    tensor.external_data.add(key="location", value="../secret")
    model.graph.node.add(op_type="Constant", output=["leak"]).attribute.add(name="value", t=tensor, type=4)
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(MalformedModel, match=r"\.\./secret"):
        Artifact.open(copy)


def test_a_model_replaced_after_opening_is_not_run_by_the_old_report(one: Built, copy: Path) -> None:
    artifact = Artifact.open(copy)
    other = built(models.tied)
    with Staging(copy) as staging:
        staging.weights([weights_of(other.folder).read_bytes()])
        model = staging.temporary(".onnx")
        model.write_bytes((other.folder / "model.onnx").read_bytes())
        staging.commit(model, "model.onnx", report_of(other.program))
    with pytest.raises(MalformedModel, match="replaced"):
        artifact.run(X)


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.usefixtures("without_cuda")
def test_a_provider_that_is_not_there_is_an_error_not_a_fallback(one: Built) -> None:
    with pytest.raises(UserError, match="provider 'gpu'"):
        output(Artifact.open(one.folder, provider="gpu"))
    with pytest.raises(MissingDependency, match=CUDA_PROVIDER):
        output(Artifact.open(one.folder, provider="cuda"))
    assert torch.equal(output(Artifact.open(one.folder, provider="CPUExecutionProvider")), output(one.artifact))


@pytest.mark.usefixtures("without_cuda")
def test_target_cuda_falls_back_to_the_cpu_without_a_device(
    copy: Path, one: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_module, "cuda_available", lambda: False)
    edit_report(copy, target="cuda")
    artifact = Artifact.open(copy)
    assert artifact.target == "cuda"
    assert torch.equal(output(artifact), output(one.artifact))
    monkeypatch.setattr(artifact_module, "cuda_available", lambda: True)
    with pytest.raises(MissingDependency, match=CUDA_PROVIDER):
        output(Artifact.open(copy))


def test_a_foreign_onnx_file_says_that_it_has_no_interface(tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n"]) for n in "xy"]
    node = onnx.helper.make_node("Abs", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(MalformedModel, match="does not say what it takes"):
        Artifact.open(tmp_path).run(X)


def test_a_trusted_model_is_opened_by_its_path_and_others_from_what_was_checked(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def recording(model: object, **options: Any) -> Any:
        opened.append(model)
        return open_session(model, **options)  # type: ignore[arg-type]  # handed on as it is

    monkeypatch.setattr(artifact_module, "open_session", recording)
    assert torch.equal(output(Artifact.open(copy, trust="code")), output(Artifact.open(copy)))
    assert opened[0] == copy / "model.onnx"
    assert isinstance(opened[1], CheckedOnnx)
