"""CUDA source becomes device code for the architecture that was asked for, or the reason is said."""

import sysconfig
from pathlib import Path

import pytest

from flowopt.errors import InternalError, MissingDependency
from flowopt.lowering.tvm.cuda.nvcc import device_code, require_nvcc
from tests.lowering.tvm.cuda.toolchain import needs_nvcc

# Compiles for an A100 alone; nvcc reads a source for the host too.
_FOR_SM_80 = """
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800
#error another architecture
#endif
extern "C" __global__ void nothing() {}
"""


def _without_path(monkeypatch: pytest.MonkeyPatch, packages: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(packages))


def test_without_nvcc_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_path(monkeypatch, tmp_path)
    with pytest.raises(MissingDependency, match="pip install nvidia-cuda-nvcc"):
        require_nvcc()


def test_nvcc_without_a_compiler_for_the_host_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_path(monkeypatch, tmp_path)
    packaged = tmp_path / "nvidia/cu13/bin/nvcc"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    with pytest.raises(MissingDependency, match=r"no g\+\+"):
        require_nvcc()


@needs_nvcc
def test_nvcc_of_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_path(monkeypatch, tmp_path)
    packaged = tmp_path / "nvidia/cu13/bin/nvcc"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert require_nvcc() == packaged


@needs_nvcc
def test_source_is_compiled_for_the_architecture() -> None:
    assert device_code(_FOR_SM_80, "sm_80")
    with pytest.raises(InternalError, match="another architecture"):
        device_code(_FOR_SM_80, "sm_90")


@needs_nvcc
def test_an_error_of_nvcc_is_handed_on() -> None:
    with pytest.raises(InternalError, match="undeclared_name"):
        device_code('extern "C" __global__ void f(float* x) { *x = undeclared_name; }', "sm_90")
