"""The same program gives the same files in another process with another hash seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowopt.formats.digest import file_sha256

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, torch
from pathlib import Path
from tests.lowering import models
from tests.lowering.build import build, build_torch
torch.manual_seed(0)
program = getattr(models, sys.argv[1])()
build(program, Path(sys.argv[2]) / "onnx")
build_torch(program, Path(sys.argv[2]) / "torch")
"""


def digests(folder: Path, name: str, seed: str, threads: str) -> dict[str, str]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", SCRIPT, name, str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    return {str(f.relative_to(folder)): file_sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "counter", "attention", "convolutions"])
def test_files_are_equal_across_processes_folders_and_hash_seeds(tmp_path: Path, name: str) -> None:
    first = digests(tmp_path / "a", name, seed="1", threads="1")
    assert {"onnx/model.onnx", "torch/model.pt2"} <= first.keys()
    assert digests(tmp_path / "a much longer name", name, seed="77", threads="2") == first
