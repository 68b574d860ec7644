"""Read an archive of ``torch.export.save`` without torch: what is left is data.

``torch.export.load`` runs what a file says in at least eight ways: pickled sample inputs, weights and constants, older
weight files, and, without any pickle, shape expressions, guards, names that it pastes into Python code, and the modules
of enumerations in a nesting. Here the parts that torch needs are read by our own code and written down again; nothing
else reaches torch.
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from flowopt.errors import FlowoptError, MalformedModel
from flowopt.formats.bounded_json import parse_json
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.pt2.checks import Place
from flowopt.formats.pt2.document import clean_document
from flowopt.formats.pt2.members import Extent, Members, sorted_members
from flowopt.formats.pt2.tensors import StoredTensor, stored_tensors
from flowopt.formats.zip_directory import Directory, read_directory, stored_extents

_CHUNK: Final = 1 << 20
_MOST_EXTRA: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class CleanArchive:
    """What a checked archive holds.

    Attributes:
        document: the graph's description, rebuilt from checked values.
        weights, constants: where each tensor lies in the file.
        extra: small text files that the exporter added.
        sha256: hex digest of the whole file.
    """

    document: dict[str, Any]
    weights: tuple[StoredTensor, ...]
    constants: tuple[StoredTensor, ...]
    extra: Mapping[str, str]
    sha256: str


def read_archive(file: BinaryIO, name: str, limits: Limits = DEFAULT_LIMITS) -> CleanArchive:
    """Check an archive, part by part.

    Args:
        file: open for reading; it stays open.
        name: the file's name, for messages.
        limits: of size, depth and numbers.

    Raises:
        MalformedModel: damaged, cut off, or not of the form that torch 2.11 to 2.13 writes.
        Untrusted: a part that torch would run.
    """
    try:
        return _read(file, limits)
    except FlowoptError as error:
        error.message = f"refused {name}: {error.message}"
        raise
    except RecursionError as error:
        # Where --limit depth allows more than Python does.
        raise MalformedModel(
            f"refused {name}: its graph is nested deeper than Python can read",
            hint="if that is meant",
            retry=(("--limit", f"depth={limits.depth // 2}"),),
        ) from error


def _read(file: BinaryIO, limits: Limits) -> CleanArchive:
    directory = read_directory(file, limits)
    extents = stored_extents(file, directory)
    members = sorted_members(extents)
    sha256 = _checked_contents(file, directory, extents)
    _require_layout(file, members)
    found = parse_json(_bytes(file, members.graph, limits.json), what="the graph's description", limits=limits)
    weights = _tensors(file, members.weights_config, members.weights, "weights_config.json", limits)
    constants = _tensors(file, members.constants_config, members.constants, "constants_config.json", limits)
    document = clean_document(found, Place(f"models/{members.model}.json"), limits)
    extra = {
        name: _bytes(file, extent, _MOST_EXTRA).decode("utf-8", "replace")
        for name, extent in members.extra.items()
        if extent[1] <= _MOST_EXTRA
    }
    return CleanArchive(document, weights, constants, extra, sha256)


def _tensors(
    file: BinaryIO, config: Extent, records: Mapping[str, Extent], name: str, limits: Limits
) -> tuple[StoredTensor, ...]:
    return stored_tensors(parse_json(_bytes(file, config, limits.json), what=name, limits=limits), records, Place(name))


def _require_layout(file: BinaryIO, members: Members) -> None:
    """The version of the container, and the order of bytes in its numbers."""
    for name, wanted in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        if name in members.small and _bytes(file, members.small[name], 64).strip() != wanted:
            raise MalformedModel(
                f"the archive's {name.replace('_', ' ')} is not {wanted.decode()}",
                hint="export the model again with torch 2.11 or newer, on a little-endian machine",
            )


def _bytes(file: BinaryIO, extent: Extent, most: int) -> bytes:
    start, length = extent
    if length > most:
        raise MalformedModel(
            f"a part has {length:,} bytes; the limit is {most:,}",
            hint="if that is meant",
            retry=(("--limit", f"json={length}"),),
        )
    file.seek(start)
    return file.read(length)


def _checked_contents(file: BinaryIO, directory: Directory, extents: Mapping[str, Extent]) -> str:
    """The digest of the file; every member's checksum is compared on the way."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    for member in directory.members:
        if _crc32(file, *extents[member.name]) != member.crc32:
            raise MalformedModel(
                f"the archive is damaged: the content of {member.name!r} has changed", hint="download or copy it again"
            )
    return digest.hexdigest()


def _crc32(file: BinaryIO, start: int, length: int) -> int:
    file.seek(start)
    crc = 0
    while length > 0:
        chunk = file.read(min(_CHUNK, length))
        if not chunk:
            break
        crc = zlib.crc32(chunk, crc)
        length -= len(chunk)
    return crc


def open_model(path: Path) -> BinaryIO:
    """Open a file for reading; the same open file is checked and mapped, so that it cannot be exchanged between."""
    return path.open("rb")
