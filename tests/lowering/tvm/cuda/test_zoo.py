"""Every architecture of the zoo is compiled for a GPU."""

from pathlib import Path

import pytest

from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.capture import capture
from tests.lowering.tvm.cuda.toolchain import needs_nvcc
from tests.zoo.architectures import ARCHITECTURES

pytest.importorskip("tvm")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_optimized_model_becomes_a_library_without_source(name: str, tmp_path: Path) -> None:
    from flowopt.lowering.tvm.cuda.pipeline import compiled_for_cuda
    from flowopt.lowering.tvm.imported import imported

    model = ARCHITECTURES[name]()
    program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    optimized = run_passes(program, parse_pipeline(DEFAULT_PRESET)).program
    compiled_for_cuda(imported(optimized).module, "sm_90").export_library(tmp_path / "model.so")
    written = (tmp_path / "model.so").read_bytes()
    assert b"-arch sm_90" in written
    assert b"__global__" not in written
