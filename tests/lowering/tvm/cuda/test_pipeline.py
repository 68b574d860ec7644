"""Modules become libraries for a GPU on a machine without one."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import MissingDependency, UserError
from flowopt.lowering.tvm.cuda.nvcc import device_code
from tests.lowering.tvm.compare import captured
from tests.lowering.tvm.cuda.toolchain import needs_nvcc

pytest.importorskip("tvm")


def _module(function: Any, *inputs: Tensor, free: Any = None) -> Any:
    from flowopt.lowering.tvm.imported import imported

    return imported(captured(function, *inputs, free=free)).module


def _library(function: Any, *inputs: Tensor, arch: str = "sm_90", free: Any = None) -> Any:
    from flowopt.lowering.tvm.cuda.pipeline import compiled_for_cuda

    return compiled_for_cuda(_module(function, *inputs, free=free), arch)


def _perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 72))


def _shared_bytes(source: str) -> int:
    """The most that one kernel takes."""
    kernels = re.split(r"__global__", source)
    return max(sum(4 * int(n) for n in re.findall(r"__shared__[^;\[]*\[(\d+)\]", kernel)) for kernel in kernels)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_library_holds_machine_code_and_no_source(arch: str, tmp_path: Path) -> None:
    library = _library(_perceptron(), torch.randn(5, 96), arch=arch, free={"input": {0: "batch"}})
    library.export_library(tmp_path / "model.so")
    written = (tmp_path / "model.so").read_bytes()
    names = re.findall(r"__launch_bounds__\(\d+\) (\w+)\(", library.source())
    assert names
    assert all(name.encode() in written for name in names)
    # In the note of ptxas about what it made the machine code for.
    assert re.findall(rb"-arch (sm_\d+)", written) == [arch.encode()]
    assert b"__global__" not in written


@needs_nvcc
def test_float32_products_stay_off_tensor_cores() -> None:
    source = _library(_perceptron(), torch.randn(128, 96)).source()
    assert "fused_matmul" in source
    assert not re.findall(r"mma|tf32|__(?:exp|log|sin|cos|tan|pow)f", source)


@needs_nvcc
def test_a_row_of_free_length_takes_shared_memory_for_its_sums_alone() -> None:
    source = _library(lambda x: torch.softmax(x, -1), torch.randn(3, 7), free={"x": {1: "length"}}).source()
    assert 0 < _shared_bytes(source) <= 2048


@needs_nvcc
def test_a_row_longer_than_shared_memory_is_compiled() -> None:
    source = _library(lambda x: torch.log_softmax(x, -1), torch.randn(2, 50257)).source()
    assert 0 < _shared_bytes(source) <= 2048


@needs_nvcc
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cumsum(x, -1),
        lambda x: torch.topk(x, 2).values,
        lambda x: torch.argsort(x, -1),
        lambda x: torch.scatter_add(x, 1, torch.zeros_like(x, dtype=torch.int64), x),
        lambda x: torch.gather(x, 1, torch.ones_like(x, dtype=torch.int64)),
        lambda x: x[:, torch.tensor([2, 0])],
    ],
    ids=["cumsum", "topk", "argsort", "scatter", "gather", "index"],
)
def test_what_is_no_plain_loop_is_bound_to_threads(function: Any) -> None:
    assert "threadIdx" in _library(function, torch.randn(4, 6), free={"x": {0: "batch"}}).source()


@needs_nvcc
def test_a_product_under_a_mask_is_source_that_nvcc_takes() -> None:
    masked = _library(lambda x, y: torch.where(y, x @ x.T, -1.0), torch.randn(64, 64), torch.ones(64, 1) > 0)
    assert "matmul" in masked.source()
    assert device_code(masked.source(), "sm_90")


def test_without_nvcc_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = _module(torch.exp, torch.randn(3))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    from flowopt.lowering.tvm.cuda.pipeline import compiled_for_cuda

    with pytest.raises(MissingDependency, match="nvcc"):
        compiled_for_cuda(module, "sm_90")


def test_an_unknown_architecture_is_refused_before_anything_is_compiled() -> None:
    with pytest.raises(UserError, match="sm_90"):
        _library(torch.exp, torch.randn(3), arch="ampere")


@needs_nvcc
def test_the_callback_of_tvm_is_put_back() -> None:
    import tvm

    before = tvm.get_global_func("tvm_callback_cuda_compile")
    _library(torch.exp, torch.randn(3))
    assert tvm.get_global_func("tvm_callback_cuda_compile").same_as(before)
