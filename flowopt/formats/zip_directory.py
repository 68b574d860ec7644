"""The directory of a zip archive, read and checked by our own code.

Zip readers disagree about archives that contradict themselves: one trusts the central directory, another the local
headers, a third takes the last of two entries of one name. A file that means two things to two readers could pass a
check and then be read as something else, so here every byte has one meaning or the archive is refused.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (zip64).
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from flowopt.errors import MalformedModel
from flowopt.formats.limits import DEFAULT_LIMITS, Limits

LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64: Final = struct.Struct("<4sIQI")
_END_SIGNATURE: Final = b"PK\x05\x06"
_LOCATOR64_SIGNATURE: Final = b"PK\x06\x07"
_MOST_END_BYTES: Final = _END.size + 0xFFFF
_IN_ZIP64: Final = 0xFFFFFFFF
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_DESCRIPTOR: Final = 0x8
_AGAIN: Final = "download or copy it again"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the directory. ``header`` is the offset of its local header, ``method`` 0 where it is stored."""

    name: str
    method: int
    flags: int
    crc32: int
    packed_bytes: int
    bytes: int
    header: int


@dataclass(frozen=True, slots=True)
class Directory:
    """All entries, in the order of the file, and where the entries end (the offset of the central directory)."""

    members: tuple[Member, ...]
    end: int


def read_directory(file: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Directory:
    """The central directory.

    Raises:
        MalformedModel: no directory at the end (a file that is cut off), or one that contradicts itself.
    """
    size = file.seek(0, 2)
    count, start, length, tail = _end(file, size)
    if count > limits.members:
        raise MalformedModel(
            f"the archive has {count:,} entries; the limit is {limits.members:,}",
            hint="if that is meant",
            retry=(("--limit", f"members={count}"),),
        )
    if start + length > tail:
        raise _damaged("the directory lies behind its own end")
    if length > limits.json:
        raise MalformedModel(
            f"the archive's directory has {length:,} bytes; the limit is {limits.json:,}",
            hint="if that is meant",
            retry=(("--limit", f"json={length}"),),
        )
    file.seek(start)
    data = file.read(length)
    members, position = [], 0
    for _ in range(count):
        member, position = _member(data, position)
        members.append(member)
    if position != len(data):
        raise _damaged("the directory is longer than its entries")
    return Directory(tuple(sorted(members, key=lambda m: m.header)), start)


def stored_extents(file: BinaryIO, directory: Directory) -> dict[str, tuple[int, int]]:
    """Offset and length of every member's bytes, of an archive whose entries are stored and leave no gap.

    Raises:
        MalformedModel: a compressed or encrypted entry, two entries of one name, a name that leads out of the
            archive, overlapping entries, bytes that belong to none, or a local header that says something else than
            the directory.
    """
    extents: dict[str, tuple[int, int]] = {}
    position = 0
    for member in directory.members:
        _require_plain(member, extents)
        if member.header != position:
            raise _damaged(f"entry {member.name!r} overlaps another, or bytes before it belong to none")
        start = member.header + _local_bytes(file, member)
        position = start + member.bytes
        if position > directory.end:
            raise _damaged(f"entry {member.name!r} is longer than the archive")
        extents[member.name] = (start, member.bytes)
        position += _descriptor_bytes(file, member, position) if member.flags & _DESCRIPTOR else 0
    if position != directory.end:
        raise _damaged("bytes before its directory belong to no entry")
    return extents


def _end(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Number of entries, offset and length of the directory, and where the end records start."""
    file.seek(max(size - _MOST_END_BYTES, 0))
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        raise MalformedModel("the archive's end is missing: the file is cut off", hint=_AGAIN)
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise _damaged("bytes follow its end")
    position = size - len(tail) + at
    told = (here, count, length, start)
    # torch writes the 64-bit records always; the 32-bit ones then repeat them or say "look there".
    if at >= _LOCATOR64.size and tail[at - _LOCATOR64.size :].startswith(_LOCATOR64_SIGNATURE):
        position, count, start, length = _end64(file, position)
        same = zip(told, (count, count, length, start), (0xFFFF, 0xFFFF, _IN_ZIP64, _IN_ZIP64), strict=True)
        if any(old not in (new, full) for old, new, full in same):
            raise _damaged("its two ends contradict each other")
    elif disk or first_disk or here != count:
        raise _damaged("it is one part of several")
    if start + length != position:
        raise _damaged("its directory is not where its end says")
    return count, start, length, position


def _end64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    if end < _LOCATOR64.size + _END64.size:
        raise _damaged("its zip64 records are missing")
    file.seek(end - _LOCATOR64.size)
    signature, disk, position, disks = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
    if signature != _LOCATOR64_SIGNATURE or disk or disks > 1 or position != end - _LOCATOR64.size - _END64.size:
        raise _damaged("its zip64 locator points elsewhere")
    file.seek(position)
    signature, _, _, _, disk, first_disk, here, count, length, start = _END64.unpack(file.read(_END64.size))
    if signature != b"PK\x06\x06" or disk or first_disk or here != count:
        raise _damaged("its zip64 end contradicts itself")
    return position, count, start, length


def _member(data: bytes, position: int) -> tuple[Member, int]:
    if len(data) - position < _CENTRAL.size:
        raise _damaged("its directory is cut off")
    fields = _CENTRAL.unpack_from(data, position)
    signature, _, _, flags, method, _, _, crc, packed, size, names, extras, comments, disk, _, _, header = fields
    end = position + _CENTRAL.size + names + extras + comments
    if signature != b"PK\x01\x02" or end > len(data):
        raise _damaged("its directory holds something else than entries")
    position += _CENTRAL.size
    name = _name(data[position : position + names])
    extra = data[position + names : position + names + extras]
    size, packed, header, disk = _zip64_values(extra, size, packed, header, disk)
    if disk:
        raise _damaged("it is one part of several")
    return Member(name, method, flags, crc, packed, size, header), end


def _zip64_values(extra: bytes, size: int, packed: int, header: int, disk: int) -> tuple[int, int, int, int]:
    """Sizes and offset, taken from the zip64 field where the 32-bit fields say so."""
    values = _extra_fields(extra).get(1, b"")
    found = []
    for value, full, code in ((size, _IN_ZIP64, "<Q"), (packed, _IN_ZIP64, "<Q"), (header, _IN_ZIP64, "<Q")):
        if value == full and values:
            if len(values) < 8:
                raise _damaged("a zip64 field is cut off")
            value, values = struct.unpack_from(code, values)[0], values[8:]
        found.append(value)
    return found[0], found[1], found[2], 0 if disk == 0xFFFF else disk


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if position + 4 + length > len(extra):
            raise _damaged("an extra field is cut off")
        if kind in fields:
            raise _damaged("an entry has one extra field twice")
        fields[kind] = extra[position + 4 : position + 4 + length]
        position += 4 + length
    if position != len(extra):
        raise _damaged("an extra field is cut off")
    return fields


def _require_plain(member: Member, known: dict[str, tuple[int, int]]) -> None:
    parts = member.name.split("/")
    if "\\" in member.name or ":" in member.name or any(part in ("", ".", "..") for part in parts):
        raise MalformedModel(
            f"the archive has an entry {member.name!r}", why="its name could lead out of the archive", hint=_OWNER
        )
    if member.name in known:
        raise MalformedModel(
            f"the archive has two entries {member.name!r}", why="readers differ in which one they take", hint=_OWNER
        )
    if member.flags & _ENCRYPTED:
        raise MalformedModel(f"entry {member.name!r} of the archive is encrypted", hint=_OWNER)
    if member.method != 0 or member.packed_bytes != member.bytes:
        raise MalformedModel(
            f"entry {member.name!r} of the archive is compressed",
            why="torch stores entries as they are, and an archive that unpacks can fill a disk",
            hint="export it again with torch.export.save",
        )


_OWNER = "ask whoever made the file for one that torch.export.save wrote"


def _local_bytes(file: BinaryIO, member: Member) -> int:
    """Length of the local header, which must repeat the directory."""
    file.seek(member.header)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size:
        raise _damaged(f"the header of {member.name!r} is cut off")
    signature, _, flags, method, _, _, crc, packed, size, names, extras = _LOCAL.unpack(head)
    rest = file.read(names + extras)
    if signature != LOCAL_SIGNATURE or len(rest) < names + extras or _name(rest[:names]) != member.name:
        raise _damaged(f"the header of {member.name!r} is not where the directory says")
    fields = _extra_fields(rest[names:])
    if 1 in fields and len(fields[1]) >= 16:
        size = struct.unpack_from("<Q", fields[1])[0] if size == _IN_ZIP64 else size
        packed = struct.unpack_from("<Q", fields[1], 8)[0] if packed == _IN_ZIP64 else packed
    kind = (method, flags) == (member.method, member.flags)
    figures = (crc, packed, size)
    # With a data descriptor the three figures may stand behind the data instead.
    behind = bool(flags & _DESCRIPTOR) and figures == (0, 0, 0)
    if not kind or not (behind or figures == (member.crc32, member.packed_bytes, member.bytes)):
        raise _damaged(f"the header of {member.name!r} contradicts the directory")
    return int(_LOCAL.size + names + extras)


def _descriptor_bytes(file: BinaryIO, member: Member, position: int) -> int:
    file.seek(position)
    found = file.read(24)
    # The wide one first: of an empty member, the narrow one is its beginning.
    for layout in ("<4sI2Q", "<4sI2I"):
        size = struct.calcsize(layout)
        if len(found) >= size and struct.unpack_from(layout, found) == (
            b"PK\x07\x08",
            member.crc32,
            member.packed_bytes,
            member.bytes,
        ):
            return size
    raise _damaged(f"what follows {member.name!r} contradicts the directory")


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged("an entry's name is no text") from error
    if not name.isprintable():
        raise _damaged(f"an entry's name holds control characters: {name!r}")
    return name


def _damaged(what: str) -> MalformedModel:
    return MalformedModel(f"the archive is damaged: {what}", hint=_AGAIN)
