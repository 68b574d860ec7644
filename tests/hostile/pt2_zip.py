"""Archives whose container lies: about names, places, sizes, or what follows what."""

import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.hostile.pt2_archive import (
    CONSTANTS,
    MODEL,
    ROOT,
    WEIGHTS,
    Ending,
    Entry,
    entries,
    packed,
    parts,
    sound_bytes,
    with_members,
    written,
)

_DEFLATED: Final = 8
_BOMB_BYTES: Final = 1 << 24


def _with_entry(folder: Path, entry: Entry) -> Path:
    return written(folder, packed([*entries(parts()), entry]))


def _named(folder: Path, name: str) -> Path:
    return _with_entry(folder, Entry(name, b"x"))


def _changed(folder: Path, member: str, **changes: Any) -> Path:
    """The sound archive with wrong figures in one entry."""
    items = entries(parts())
    for item in items:
        if item.name == f"{ROOT}/{member}":
            for field, value in changes.items():
                setattr(item, field, value)
    return written(folder, packed(items))


def _compressed(folder: Path) -> Path:
    squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = bytes(_BOMB_BYTES)
    data = squeezer.compress(bomb) + squeezer.flush()
    entry = Entry(f"{ROOT}/extra/bomb", data, method=_DEFLATED, stated_bytes=len(bomb), crc32=zlib.crc32(bomb))
    return _with_entry(folder, entry)


def _twice(folder: Path) -> Path:
    return _with_entry(folder, Entry(f"{ROOT}/{MODEL}", parts()[MODEL]))


def _ending(folder: Path, ending: Ending) -> Path:
    return written(folder, packed(entries(parts()), ending))


def _shifted(folder: Path) -> Path:
    """A program before the archive, whose offsets count from the archive's start, as self-extracting ones do."""
    return written(folder, b"\x7fELF" + bytes(60) + sound_bytes())


def _overlapping(folder: Path) -> Path:
    items = entries(parts())
    items[-1].offset = 0
    items[-1].header_name = items[-1].name
    return written(folder, packed(items))


def _huge(folder: Path) -> Path:
    """2^50 bytes, said in a zip64 field."""
    full = 0xFFFFFFFF
    field = struct.pack("<2H2Q", 1, 16, 1 << 50, 1 << 50)
    return _changed(folder, "data/weights/weight_1", stated_bytes=full, stated_packed=full, extra=field)


def _many(folder: Path) -> Path:
    """A zip64 end that claims 2^31 entries."""
    content = packed(entries(parts()))
    end = content[-22:]
    length, start = struct.unpack_from("<2I", end, 12)
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1 << 31, 1 << 31, length, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(content) - 22, 1)
    told = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, length, start, 0)
    return written(folder, content[:-22] + wide + locator + told)


def _entries_beyond_the_limit(folder: Path) -> Path:
    return with_members(folder, {f"extra/{number}": b"" for number in range(10_001)})


def _two_roots(folder: Path) -> Path:
    return written(folder, packed([*entries(parts()), *entries({"version": b"1"}, "other")]))


def _two_models(folder: Path) -> Path:
    return with_members(folder, {"models/other.json": parts()[MODEL]})


def _nested(folder: Path) -> Path:
    return with_members(folder, {"data/archive.zip": sound_bytes()})


def _cut(folder: Path) -> Path:
    return written(folder, sound_bytes()[:-200])


def _flipped(folder: Path) -> Path:
    content = bytearray(sound_bytes())
    content[content.index(parts()["data/weights/weight_0"])] ^= 1
    return written(folder, bytes(content))


ZIP_FILES: Final[dict[str, Callable[[Path], Path]]] = {
    "zip-bomb": _compressed,
    "zip-twice": _twice,
    "zip-other-header": partial(_changed, member=MODEL, header_name=f"{ROOT}/models/other.json"),
    "zip-header-and-checksum": partial(_changed, member=MODEL, crc32=1),
    "zip-overlapping": _overlapping,
    "zip-program-before": _shifted,
    "zip-page-before": partial(_ending, ending=Ending(before=b"PK\x03\x04<html>")),
    "zip-between": partial(_ending, ending=Ending(between=b"#!/bin/sh\n")),
    "zip-after": partial(_ending, ending=Ending(after=b"#!/bin/sh\n")),
    "zip-comment-with-end": partial(_ending, ending=Ending(comment=b"PK\x05\x06" + bytes(18))),
    "zip-encrypted": partial(_changed, member=MODEL, flags=1),
    "zip-parent": partial(_named, name=f"{ROOT}/../../outside"),
    "zip-absolute": partial(_named, name="/etc/outside"),
    "zip-backslash": partial(_named, name=f"{ROOT}/..\\..\\outside"),
    "zip-drive": partial(_named, name=f"{ROOT}/C:/outside"),
    "zip-folder": partial(_named, name=f"{ROOT}/extra/"),
    "zip-nul": partial(_named, name=f"{ROOT}/extra/a\0b"),
    "zip-escape": partial(_named, name=f"{ROOT}/extra/\x1b[31m"),
    "zip-bidirectional": partial(_named, name=f"{ROOT}/extra/\u202etxt"),
    "zip-link": partial(_with_entry, entry=Entry(f"{ROOT}/data/link", b"/etc/passwd", attributes=0o120777 << 16)),
    "zip-huge": _huge,
    "zip-longer": partial(_changed, member="byteorder", stated_bytes=1 << 20, stated_packed=1 << 20),
    "zip-many": _many,
    "zip-many-entries": _entries_beyond_the_limit,
    "zip-fewer-than-said": partial(_ending, ending=Ending(count=999)),
    "zip-two-roots": _two_roots,
    "zip-two-models": _two_models,
    "zip-unknown": partial(with_members, changes={"data/other": b"x"}),
    "zip-nested": _nested,
    "zip-no-weights": partial(with_members, changes={WEIGHTS: None}),
    "zip-no-constants": partial(with_members, changes={CONSTANTS: None}),
    "zip-other-version": partial(with_members, changes={"archive_version": b"1"}),
    "zip-big-endian": partial(with_members, changes={"byteorder": b"big"}),
    "zip-cut": _cut,
    "zip-flipped": _flipped,
}
