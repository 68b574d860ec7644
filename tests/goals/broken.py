"""Broken files, loaded one after the other: what is said about each, and how long it takes."""

import contextlib
import functools
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

import flowopt
from flowopt.cli.failure import described, exit_code_of
from flowopt.errors import FlowoptError
from flowopt.formats.detect import detect
from flowopt.formats.kinds import Kind
from tests.hostile.broken_files import BrokenFile, broken_files

MALFORMED, UNTRUSTED, USAGE = 65, 77, 2
# A file of these kinds that is whole, whatever its name, needs other options or another command.
_USAGE_KINDS = (Kind.SAFETENSORS, Kind.ONNX)


@dataclass(slots=True)
class Survey:
    """What came of a number of broken files.

    Attributes:
        codes: exit code to number of files; 0 where a change was harmless and the model is bit for bit the old one.
        problems: one line per file that was not handled as promised.
        seconds: of all; slowest: of one.
    """

    codes: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0


def surveyed(folder: Path, count: int, seed: int) -> Survey:
    """Load ``count`` broken files with the default trust."""
    survey = Survey()
    for broken in broken_files(folder, count, seed):
        started = time.perf_counter()
        code, problem, program = _loaded(broken)
        seconds = time.perf_counter() - started
        survey.codes[code] += 1
        survey.seconds += seconds
        survey.slowest = max(survey.slowest, seconds)
        if program is not None and (broken.harmless is False or not _is_an_original(program, folder / "valid")):
            problem = "it was loaded, and is no longer the model that it was"
        if problem:
            survey.problems.append(f"{broken.origin}, {broken.done}: {problem}")
    return survey


def _loaded(broken: BrokenFile) -> tuple[int, str, flowopt.Program | None]:
    """The exit code, what is wrong about it, and the program where there is one."""
    try:
        return 0, "", flowopt.load(broken.path)
    except FlowoptError as error:
        code, screen = exit_code_of(error), described(error, ["optimize", str(broken.path)])
    except Exception as error:  # noqa: BLE001  # whatever else is raised is the finding
        return 70, f"{type(error).__name__}: {error}", None
    if code not in (MALFORMED, UNTRUSTED) and not (code == USAGE and broken.origin in _USAGE_KINDS):
        return code, f"exit {code}: {screen.splitlines()[0]}", None
    if "\n  try " not in screen:
        return code, f"nothing to try: {screen.splitlines()[0]}", None
    return code, "", None


def _is_an_original(program: flowopt.Program, folder: Path) -> bool:
    """Whether it is, bit for bit, what one of the unbroken files holds."""
    return any(
        old.tensors.keys() == program.tensors.keys()
        and all(torch.equal(old.tensors[name], tensor) for name, tensor in program.tensors.items())
        and str(old.graph) == str(program.graph)
        for old in _originals(folder)
    )


@functools.cache
def _originals(folder: Path) -> tuple[flowopt.Program, ...]:
    archives = [path for path in sorted(folder.iterdir()) if detect(path).kind is Kind.EXPORT_ARCHIVE]
    loaded = []
    for path in archives:
        with contextlib.suppress(FlowoptError):  # an archive of an older torch is refused
            loaded.append(flowopt.load(path))
    return tuple(loaded)
