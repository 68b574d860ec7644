"""Load an archive of ``torch.export.save``."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from flowopt.errors import FlowoptError, MalformedModel
from flowopt.formats.digest import file_sha256
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.printable import printable
from flowopt.formats.pt2.archive import CleanArchive, read_archive
from flowopt.ir.quiet import quiet
from flowopt.program.from_exported import program_from_exported
from flowopt.program.loading.rebuild import rebuilt_program
from flowopt.program.loading.trust import Trust
from flowopt.program.program import Program, Provenance
from flowopt.sandbox.isolated import run_isolated

_TRIAL = "flowopt.program.loading.trial:try_archive"
_MOST_NAME = 255


@dataclass(frozen=True, slots=True)
class LoadedArchive:
    """An archive as torch's ``ExportedProgram``, with the text files the exporter added and the file's digest."""

    exported: Any
    extra: Mapping[str, str]
    sha256: str


def load_archive(path: Path, *, trust: Trust = "data", limits: Limits = DEFAULT_LIMITS) -> Program:
    """Load a ``.pt2`` archive as a Program. Sample inputs are dropped; sizes keep their ranges.

    Args:
        path: the archive.
        trust: ``code`` hands the file to ``torch.export.load``, which runs what it says; else flowopt's own reader
            takes the data out of it, after a first run in a process of its own.
        limits: of that reader and process.

    Raises:
        MalformedModel: no archive that torch wrote, damaged, or beyond the limits.
        Untrusted: a part that torch would run.
        CaptureError: a graph that flowopt does not handle.
    """
    loaded = exported_archive(path, trust=trust, limits=limits)
    with quiet():
        decomposed = loaded.exported.run_decompositions({})
    # Reports are UTF-8, and the bytes of a file's name need not be.
    source = printable(path.name, _MOST_NAME)
    return program_from_exported(decomposed, {}, Provenance(source, torch.__version__, loaded.sha256, trust))


def exported_archive(path: Path, *, trust: Trust = "data", limits: Limits = DEFAULT_LIMITS) -> LoadedArchive:
    """The archive as an ``ExportedProgram``; arguments and errors as for ``load_archive``."""
    if trust == "code":
        return _with_torch(path)
    absolute = path.absolute()
    size = path.stat().st_size
    seen = run_isolated(
        _TRIAL, {"path": str(absolute), "limits": dataclasses.asdict(limits)}, limits=limits, extra_memory=size
    )
    loaded = with_reader(absolute, path.name, limits)
    if loaded.sha256 != seen:
        raise MalformedModel(f"{path.name} changed while it was read", hint="wait until it is written, and run again")
    return loaded


def with_reader(path: Path, name: str, limits: Limits) -> LoadedArchive:
    """Read an archive with flowopt's own reader, in this process; the weights stay mapped in the file.

    Raises:
        MalformedModel, Untrusted: as ``load_archive``.
    """
    with path.open("rb") as file:
        return with_rebuilder(read_archive(file, name, limits), file, name)


def with_rebuilder(archive: CleanArchive, file: BinaryIO, name: str) -> LoadedArchive:
    """The second half of ``with_reader``, for an archive that has been read."""
    try:
        with quiet():
            exported = rebuilt_program(archive, file)
    except FlowoptError:
        raise
    except Exception as error:
        # torch raises whatever a graph that contradicts itself provokes.
        raise _unreadable(name, error) from error
    return LoadedArchive(exported, archive.extra, archive.sha256)


def _with_torch(path: Path) -> LoadedArchive:
    # torch fills in every extra file, but only into a dictionary that is not empty.
    extra: dict[str, Any] = {"": ""}
    try:
        with quiet():
            exported = torch.export.load(path, extra_files=extra)
    except Exception as error:
        # torch raises whatever the file provokes; the user needs the file's name and the first line.
        raise _unreadable(path.name, error) from error
    return LoadedArchive(exported, {n: str(text) for n, text in extra.items() if n}, file_sha256(path))


def _unreadable(name: str, error: Exception) -> MalformedModel:
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return MalformedModel(
        f"{name} is an archive that torch cannot load",
        why=f"{type(error).__name__}: {first.strip()[:200]}",
        hint="export it again with torch.export.save; an archive of another version of torch needs that version",
    )
