"""What the compiler writes: reproducible, without paths, without libraries; and what happens when it fails."""

import dataclasses
import importlib.metadata
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowopt.errors import BackendFailed, MissingDependency, UserError
from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import target
from flowopt.lowering.tvm.compiler import run_compiler
from flowopt.lowering.tvm.job import MODULE_FILE, PARAMETERS_FILE, Job
from flowopt.lowering.tvm.lower import Compilation, lower_to_tvm
from flowopt.lowering.tvm.toolchain import require_toolchain
from flowopt.runtime import tvm_package as package
from flowopt.runtime.layout import TVM_MODEL
from flowopt.runtime.relax_metadata import read_metadata
from flowopt.runtime.relax_module import open_relax
from tests.lowering.tvm.small_library import block, compiled

JOB = Job("plain", "cpu", None, {"main": []}, {}, None, "0", {"inputs": [], "outputs": []})


def test_the_same_program_gives_the_same_bytes_whatever_the_folder(tmp_path: Path) -> None:
    result = compiled().result
    with Staging(tmp_path / "elsewhere") as staging:
        lowered = lower_to_tvm(result.program, staging, Compilation())
        assert lowered.model.read_bytes() == (compiled().folder / TVM_MODEL).read_bytes()


def test_the_library_names_no_path(tmp_path: Path) -> None:
    data = (compiled().folder / TVM_MODEL).read_bytes()
    for path in (os.getcwd(), os.path.expanduser("~"), "/tmp/", "flowopt-tvm-"):
        assert path.encode() not in data


def test_kernels_are_the_librarys_own() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(compiled().folder / TVM_MODEL)], capture_output=True, text=True, check=True
    )
    symbols = listed.stdout.lower()
    assert "tvm" in symbols
    for foreign in ("blas", "gemm", "dnnl", "mkl", "cudnn"):
        assert foreign not in symbols


def test_plain_kernels_give_the_numbers_too(tmp_path: Path) -> None:
    module, program = block()
    x, mask = torch.randn(7, 24), torch.ones(7, dtype=torch.bool)
    with Staging(tmp_path / "plain") as staging:
        runner = open_relax(lower_to_tvm(program, staging, Compilation(kind="plain")).model)
        found = runner.run({"x": x, "mask": mask})["y"]
    with torch.no_grad():
        exact = module.double()(x.double(), mask)["y"]
    assert (found - exact).abs().max() < 3e-6


def test_another_processor_is_compiled_for(tmp_path: Path) -> None:
    with Staging(tmp_path / "old") as staging:
        lowered = lower_to_tvm(block()[1], staging, Compilation(arch="x86-64-v2"))
        metadata = read_metadata(lowered.model)
    assert metadata.arch == "x86-64-v2"
    assert "sse4.2" in metadata.features
    assert not any(feature.startswith("avx") for feature in metadata.features)


def test_what_the_compiler_says_is_reported(tmp_path: Path) -> None:
    (tmp_path / MODULE_FILE).write_text("{}")
    (tmp_path / PARAMETERS_FILE).write_bytes(b"")
    with pytest.raises(BackendFailed, match="TVM's compiler failed") as caught:
        run_compiler(tmp_path, JOB)
    assert caught.value.why
    assert "Traceback" in str(caught.value.__cause__)


def test_a_compiler_that_crashes_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\necho half a word >&2\nkill -SEGV $$\n")
    crashing.chmod(crashing.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(crashing))
    folder = tmp_path / "out"
    with pytest.raises(BackendFailed, match=r"crashed \(SIGSEGV\)") as caught, Staging(folder) as staging:
        lower_to_tvm(block()[1], staging, Compilation())
    assert caught.value.why == "half a word"
    assert not folder.exists()


def test_an_operator_without_a_form_is_named_with_its_line(tmp_path: Path) -> None:
    import flowopt
    from tests.lowering.tvm.unsupported import Unsupported

    program = flowopt.capture(Unsupported().eval(), (torch.randn(4, 4),))
    with pytest.raises(UserError, match=r"unsupported\.py:\d+"), Staging(tmp_path / "out") as staging:
        lower_to_tvm(program, staging, Compilation())


def test_a_missing_tvm_is_told_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.setattr(package, "_version", lambda name: None)
    with pytest.raises(MissingDependency) as caught:
        require_toolchain("cpu", None)
    assert caught.value.hint == 'pip install "flowopt[tvm]"'


def test_the_unrelated_project_tvm_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.setattr(package, "_version", lambda name: "1.0.0" if name == "tvm" else None)
    with pytest.raises(MissingDependency) as caught:
        require_toolchain("cpu", None)
    assert "unrelated" in caught.value.why
    assert caught.value.hint.startswith("pip uninstall -y tvm")


def test_a_release_that_crashes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowopt.lowering.tvm import toolchain

    monkeypatch.setattr(toolchain, "version", lambda name: "0.1.15.post2")
    with pytest.raises(MissingDependency) as caught:
        require_toolchain("cpu", None)
    assert "<0.1.15" in caught.value.hint


def test_the_installed_release_is_none_that_crashes() -> None:
    assert not importlib.metadata.version("apache-tvm-ffi").startswith("0.1.15")


def test_a_missing_linker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match=r"C\+\+ compiler"):
        require_toolchain("cpu", None)


def test_a_processor_that_llvm_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="LLVM knows no processor 'pentium-x'"):
        require_toolchain("cpu", "pentium-x")


def test_architectures_belong_to_targets_that_compile() -> None:
    assert target("tvm-cuda", "sm_80").arch == "sm_80"
    with pytest.raises(UserError, match="compiles for no architecture"):
        target("cpu", "sm_80")
    with pytest.raises(UserError) as caught:
        target("tvm-cuda")
    assert caught.value.retry == (("--arch", "sm_90"),)


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    JOB.save(tmp_path)
    assert dataclasses.asdict(Job.read(tmp_path)) == dataclasses.asdict(JOB)
