"""A package that pip installed, in processes of their own: listed without torch, verified like flowopt's passes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import ROOT, Ran, model
from tests.pipeline.plugin_packages import write_sources


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed the package."""
    pytest.importorskip("setuptools", reason="without a network nothing else builds the package")
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    write_sources(sources)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def run(packages: Path, folder: Path, *arguments: str) -> Ran:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)]), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_it_is_listed_with_its_package_and_without_an_import(packages: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from flowopt.cli.main import main; code = main(['passes']); "
        "sys.exit(code or 'torch' in sys.modules or 'clamping_passes' in sys.modules)"
    )
    ran = run(packages, tmp_path, "-c", code)
    assert (ran.code, ran.err) == (0, "")
    assert any(line.startswith("clamp-relu") and "clamping-passes" in line for line in ran.out.splitlines())


def test_it_is_verified_like_flowopts_own_and_undone_where_it_is_wrong(packages: Path, tmp_path: Path) -> None:
    arguments = ("--passes", "clamp-relu:floor=0.5,clamp-relu", "--dry-run", "--json", "-")
    ran = run(packages, tmp_path, "-m", "flowopt.cli.main", "optimize", model("folding"), *arguments)
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    outcomes = {p["name"]: p["outcome"] for p in report["passes"]}
    assert outcomes["clamp-relu:floor=0.5"] == "reverted"
    assert outcomes["clamp-relu"] == "kept"
    assert report["census_after"]["aten.clamp_min"] == 1 and "aten.relu" not in report["census_after"]
