"""ONNX Runtime sessions: every dtype and layout that torch can hand over, and errors that say what to install."""

import builtins
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from flowopt.errors import MalformedModel, MissingDependency, ModelNotFound, UserError
from flowopt.runtime import providers
from flowopt.runtime.onnx_session import LEVELS, open_session
from flowopt.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, cuda_available

ONNX_TYPE = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


def save(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), str(path))
    return path


def echo(path: Path, dtype: torch.dtype, shape: Sequence[int | str]) -> Path:
    """y = x."""
    kind = ONNX_TYPE[dtype]
    x, y = (helper.make_tensor_value_info(name, kind, list(shape)) for name in "xy")
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], [x], [y])


@pytest.mark.parametrize("dtype", list(ONNX_TYPE), ids=str)
def test_every_dtype_passes_through(tmp_path: Path, dtype: torch.dtype) -> None:
    runner = open_session(echo(tmp_path / "m.onnx", dtype, ["a", "b"]))
    x = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    for value in (x, x.T, x[:, ::2], x[:0]):
        result = runner.run({"x": value})["y"]
        assert result.dtype == dtype and torch.equal(result, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
def test_a_tensor_without_dimensions_stays_one(tmp_path: Path, dtype: torch.dtype) -> None:
    runner = open_session(echo(tmp_path / "m.onnx", dtype, []))
    result = runner.run({"x": torch.tensor(1).to(dtype)})["y"]
    assert result.shape == () and result.dtype == dtype and result == 1


def test_results_share_no_memory_with_inputs(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        runner = open_session(echo(tmp_path / "m.onnx", dtype, ["n"]))
        x = torch.ones(3, dtype=dtype, requires_grad=True)
        result = runner.run({"x": x})["y"]
        result += 1
        assert torch.equal(x, torch.ones(3, dtype=dtype))
        assert torch.equal(result, torch.full((3,), 2, dtype=dtype))


def test_mixed_inputs_beyond_numpy_run(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n"])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    other = helper.make_tensor_value_info("other", TensorProto.BOOL, ["n"])
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Not", ["flag"], ["other"]),
    ]
    runner = open_session(save(tmp_path / "m.onnx", nodes, [x, flag], [y, other]))
    result = runner.run({"x": torch.tensor([1.5, -2.0]).bfloat16(), "flag": torch.tensor([True, False])})
    assert torch.equal(result["y"], torch.tensor([1.5, -2.0]))
    assert result["other"].dtype == torch.bool and result["other"].tolist() == [False, True]


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_and_a_thread_count_are_accepted(tmp_path: Path, level: Any) -> None:
    runner = open_session(echo(tmp_path / "m.onnx", torch.float32, ["n"]), level=level, threads=1)
    assert runner.inputs == ("x",) and runner.outputs == ("y",) and runner.optional == ()
    assert isinstance(runner.run({"x": torch.zeros(2)})["y"], Tensor)


def test_wrong_names_and_levels_are_refused(tmp_path: Path) -> None:
    path = echo(tmp_path / "m.onnx", torch.float32, ["n"])
    with pytest.raises(UserError, match="disabled, basic, extended, all"):
        open_session(path, level="most")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(UserError, match=r"missing: \['x'\], unknown: \['z'\]"):
        open_session(path).run({"z": torch.zeros(2)})


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="none.onnx"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(MalformedModel, match="bad.onnx"):
        open_session(tmp_path / "bad.onnx")


def test_an_operator_without_kernel_is_the_users_to_solve(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n"])
    path = save(tmp_path / "m.onnx", [helper.make_node("Asinh", ["x"], ["y"])], [x], [y])
    with pytest.raises(UserError, match="no kernel") as caught:
        open_session(path)
    assert "Asinh" in caught.value.why


def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "onnxruntime":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")


def test_without_onnxruntime_the_line_to_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = echo(tmp_path / "m.onnx", torch.float32, ["n"])
    without_onnxruntime(monkeypatch)
    with pytest.raises(MissingDependency, match="flowopt") as caught:
        open_session(path)
    assert caught.value.hint == 'pip install "flowopt[cpu]"'
    with pytest.raises(MissingDependency) as caught:
        open_session(path, providers=[CUDA_PROVIDER])
    assert caught.value.hint == 'pip install "flowopt[cuda]"'
    assert not cuda_available()


def test_with_both_packages_the_one_to_remove_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = echo(tmp_path / "m.onnx", torch.float32, ["n"])
    with_both(monkeypatch)
    with pytest.warns(RuntimeWarning, match="remove onnxruntime-gpu"):
        open_session(path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependency, match="remove onnxruntime\n") as caught:
        open_session(path, providers=[CUDA_PROVIDER])
    assert caught.value.hint.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")
    without_onnxruntime(monkeypatch)
    with pytest.raises(MissingDependency, match="does not import"):
        open_session(path)


def test_cuda_needs_a_provider_and_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in (True, False):
        monkeypatch.setattr(providers, "_driver_sees_device", lambda device=device: device)
        assert cuda_available() is device
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert not cuda_available()


class _Recorded(Exception):
    """Carries what a session was asked for."""


@pytest.mark.parametrize(
    ("allow_tf32", "wanted"),
    [(False, (CUDA_PROVIDER, {"use_tf32": "0"})), (True, CUDA_PROVIDER)],
)
def test_a_verification_switches_tf32_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow_tf32: bool, wanted: object
) -> None:
    def session(*args: Any, **kwargs: Any) -> Any:
        raise _Recorded(kwargs["providers"])

    path = echo(tmp_path / "m.onnx", torch.float32, ["n"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(MalformedModel) as caught:
        open_session(path, providers=[CUDA_PROVIDER, CPU_PROVIDER], allow_tf32=allow_tf32)
    assert isinstance(caught.value.__cause__, _Recorded)
    assert caught.value.__cause__.args == ([wanted, CPU_PROVIDER],)


def test_the_cpu_has_no_tf32_to_switch_off(tmp_path: Path) -> None:
    runner = open_session(echo(tmp_path / "m.onnx", torch.float32, ["n"]), allow_tf32=False)
    assert runner.providers == (CPU_PROVIDER,)
    assert torch.equal(runner.run({"x": torch.ones(2)})["y"], torch.ones(2))
