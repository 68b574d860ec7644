"""The conventions that the registry and the readers of this code rely on."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("flowopt", "passes", "cli", "tests", "examples")
MAX_LINES = 400


def python_files() -> Iterator[Path]:
    for folder in SOURCE_FOLDERS:
        # rglob does not enter linked folders, so that each file is seen once.
        yield from sorted((ROOT / folder).rglob("*.py"))


def pass_files() -> list[Path]:
    """passes/<family>/<name>.py; a name with a leading underscore is private to its family."""
    return [path for path in sorted((ROOT / "passes").glob("*/*.py")) if not path.name.startswith("_")]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    """Top-level names of everything imported in a file, at module level or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert lengths, "no Python file was found, so nothing was checked"
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_pass_file_defines_the_class_of_its_name() -> None:
    missing = []
    for path in pass_files():
        expected = "".join(word.capitalize() for word in path.stem.split("_"))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if expected not in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
            missing.append(f"{relative(path)} does not define class {expected}")
    assert not missing


def test_every_pass_has_a_test_of_its_name() -> None:
    missing = []
    for path in pass_files():
        expected = ROOT / "tests" / "passes" / path.parent.name / f"test_{path.name}"
        if not expected.is_file():
            missing.append(f"{relative(path)} has no {relative(expected)}")
    assert not missing


def test_families_are_one_level_deep() -> None:
    misplaced = [
        relative(path)
        for path in (ROOT / "passes").rglob("*.py")
        if len(path.relative_to(ROOT / "passes").parts) != 2 and path != ROOT / "passes" / "__init__.py"
    ]
    assert not misplaced, "the registry finds passes in passes/<family>/<name>.py alone"


def test_no_package_that_the_registry_walks_imports_torch() -> None:
    files = [ROOT / "flowopt" / "__init__.py", *sorted((ROOT / "passes").rglob("__init__.py"))]
    assert [relative(path) for path in files if "torch" in imported_modules(path)] == []
