"""What is installed: the packages that pyproject.toml lists, under the one name flowopt."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("passes", "cli")


def setuptools_config() -> dict[str, Any]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    config: dict[str, Any] = pyproject["tool"]["setuptools"]
    return config


def packages_on_disk() -> set[str]:
    """Dotted names of all folders with an __init__.py, the linked ones under flowopt."""
    found = set()
    for folder, prefix in (("flowopt", "flowopt"), *((name, f"flowopt.{name}") for name in LINKS)):
        # rglob does not enter linked folders, so that each package is seen once.
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((prefix, *inside)))
    return found


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_listed_packages_are_the_folders_on_disk() -> None:
    assert set(setuptools_config()["packages"]) == packages_on_disk()


def test_every_folder_with_python_files_is_a_package() -> None:
    bare = {
        str(file.parent.relative_to(ROOT))
        for folder in ("flowopt", *LINKS, "tests")
        for file in (ROOT / folder).rglob("*.py")
        if not (file.parent / "__init__.py").exists()
    }
    assert not bare, "without an __init__.py these folders are not installed, and mypy confuses their files"


def test_package_dir_maps_each_linked_folder() -> None:
    mapping = setuptools_config()["package-dir"]
    assert mapping == {"flowopt": "flowopt"} | {f"flowopt.{name}": name for name in LINKS}


@pytest.mark.parametrize("name", LINKS)
def test_link_is_relative_and_leads_to_the_folder(name: str) -> None:
    link = ROOT / "flowopt" / name
    if not link.is_symlink() and sys.platform == "win32":
        pytest.skip("this checkout has no symbolic links; the package-dir mapping serves alone")
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", LINKS)
def test_bare_import_is_refused(name: str) -> None:
    result = run_python(f"import {name}")
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert f"import flowopt.{name}" in result.stderr


def test_import_under_flowopt_loads_neither_torch_nor_a_second_copy() -> None:
    result = run_python(
        "import sys, flowopt, flowopt.passes, flowopt.cli\nprint(sorted({'torch', 'passes', 'cli'} & set(sys.modules)))"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy without the links, which a build has to do without."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed, and without a network nothing else builds a wheel")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"setuptools {version} does not read this pyproject.toml; 77 does")

    # A build leaves folders beside the sources, and would take stale files out of them the next time.
    sources = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", *LINKS)
    for name in ("flowopt", *LINKS):
        shutil.copytree(ROOT / name, sources / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    result = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return next((sources / "dist").glob("flowopt-*.whl"))


def test_wheel_holds_only_flowopt_at_top_level(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"flowopt"}


def test_wheel_holds_every_source_file_and_the_typing_marker(wheel: Path) -> None:
    expected = {"flowopt/py.typed"}
    for folder, prefix in (("flowopt", ""), *((name, "flowopt/") for name in LINKS)):
        expected |= {
            prefix + file.relative_to(ROOT).as_posix()
            for file in (ROOT / folder).rglob("*.py")
            if "__pycache__" not in file.parts
        }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("flowopt/")}
    assert expected == held
