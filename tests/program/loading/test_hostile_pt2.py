"""Every hostile export archive is refused, fast, with something to try, and without a trace of what it would do."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import flowopt
from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.pt2.archive import read_archive
from tests.cli.command import python
from tests.hostile.pt2_archive import marker, with_members
from tests.hostile.pt2_code import ENUM_MODULE
from tests.hostile.pt2_files import HARMLESS_FILES, JUDGED_BY_TORCH, PT2_FILES

# What torch.export.load runs, so that the marker's absence elsewhere says something.
ALIVE = (
    "weight-pickle",
    "constant-pickle",
    "constant-opaque",
    "legacy-weights",
    "expression-sizes",
    "name-input",
    "name-parameter",
    "guard-call",
)
# Each in a fresh process; one of each kind of refusal.
COMMANDS = (
    "weight-pickle",
    "expression-sizes",
    "guard-call",
    "operator-os-system",
    "name-input",
    "zip-twice",
    "zip-escape",
    "json-deep",
    "schema-text",
    "name-escape",
    "size-2^50",
)
# The whole way, with a process of its own: one to three seconds each.
QUICK = ("weight-pickle", "expression-sizes", "name-input", "operator-os-system", "zip-parent", "run-full")
LOAD = """\
import sys, torch
program = torch.export.load(sys.argv[1])
program.module()(torch.zeros(2, 4))
"""


def printable(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def names(*, by_torch: bool) -> list[str]:
    return [name for name in PT2_FILES if (name in JUDGED_BY_TORCH) == by_torch]


def read(path: Path) -> None:
    with path.open("rb") as file:
        read_archive(file, path.name)


def require_refused(name: str, folder: Path, by: Callable[[Path], object]) -> None:
    path = PT2_FILES[name](folder)
    start = time.monotonic()
    with pytest.raises((MalformedModel, Untrusted)) as caught:
        by(path)
    assert time.monotonic() - start < 10
    assert caught.value.exit_code in (65, 77)
    assert caught.value.hint or caught.value.retry
    assert printable(str(caught.value)) and len(str(caught.value)) < 2_000
    assert not marker(folder).exists()


def test_the_sound_archive_runs(tmp_path: Path) -> None:
    found = flowopt.load(with_members(tmp_path, {})).run(torch.ones(3, 4))
    assert isinstance(found, torch.Tensor) and found.shape == (3, 4)


@pytest.mark.parametrize("name", names(by_torch=False))
def test_the_reader_refuses_it(name: str, tmp_path: Path) -> None:
    require_refused(name, tmp_path, read)


@pytest.mark.parametrize("name", QUICK)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    require_refused(name, tmp_path, flowopt.load)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PT2_FILES if name not in QUICK])
def test_every_other_is_refused(name: str, tmp_path: Path) -> None:
    require_refused(name, tmp_path, flowopt.load)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS_FILES)
def test_it_loads_without_what_is_dangerous(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = HARMLESS_FILES[name](tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    program = flowopt.load(path)
    program.run(torch.ones(2, 4))
    assert not marker(tmp_path).exists() and ENUM_MODULE not in sys.modules
    texts = [str(value) for node in program.graph.nodes for value in node.meta.values() if isinstance(value, str)]
    assert all(printable(text) for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_says_so(name: str, tmp_path: Path) -> None:
    path = PT2_FILES[name](tmp_path)
    ran = python("-m", "flowopt.cli.main", "optimize", str(path), folder=tmp_path)
    assert ran.code in (65, 77)
    assert "Traceback" not in ran.err and printable(ran.err) and printable(ran.out)
    assert not marker(tmp_path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIVE)
def test_torch_itself_would_run_it(name: str, tmp_path: Path) -> None:
    path = PT2_FILES[name](tmp_path)
    python("-c", LOAD, str(path), folder=tmp_path)
    assert marker(tmp_path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample-inputs", "nesting-enumeration"])
def test_torch_itself_would_run_what_is_left_out(name: str, tmp_path: Path) -> None:
    path = HARMLESS_FILES[name](tmp_path)
    python("-c", LOAD, str(path), folder=tmp_path)
    assert marker(tmp_path).exists()


@pytest.mark.slow
def test_trust_in_code_runs_it(tmp_path: Path) -> None:
    path = PT2_FILES["weight-pickle"](tmp_path)
    python("-c", "import sys, flowopt; flowopt.load(sys.argv[1], trust='code')", str(path), folder=tmp_path)
    assert marker(tmp_path).exists()
