"""Which kind of zip archive a file is, from the names in its directory."""

import dataclasses
import io
import re
import struct
import zlib
from typing import BinaryIO, Final

from flowopt.errors import MalformedModel
from flowopt.formats.detect_pickle import detect_saved
from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.limits import MEBIBYTE, Limits
from flowopt.formats.printable import printable
from flowopt.formats.zip_directory import LOCAL_SIGNATURE, Member, read_directory

MOST_PICKLE_BYTES: Final = 64 * MEBIBYTE
# Above the limit of an archive that is loaded: which kind it is can be told before that limit refuses it.
_MOST_MEMBERS: Final = 100_000
_MOST_DIRECTORY_BYTES: Final = 64 * MEBIBYTE
_END: Final = struct.Struct("<4s4H2IH")
_END64_BYTES: Final = 56 + 20
_LOCAL_BYTES: Final = 30
_GRAPH: Final = re.compile(r"models/[^/]+\.json")
_DEFLATED: Final = 8


def detect_zip(file: BinaryIO, present: int, limits: Limits) -> Detected:
    """The kind of a file that starts as a zip archive; ``present``: its bytes. Raises nothing for its content."""
    problem = _problem_of_end(file, present)
    if problem is not None:
        return Detected(*problem, present)
    try:
        wide = dataclasses.replace(limits, members=max(limits.members, _MOST_MEMBERS))
        members = read_directory(file, wide).members
    except MalformedModel as error:
        return Detected(Kind.DAMAGED, f"a zip archive that cannot be used: {error.message}", present)
    if not members:
        return Detected(Kind.ARCHIVE, "an empty zip archive", present)
    if members[0].header != 0:
        # Python's own reader would go on: of a file that is cut off it finds the last whole archive inside.
        return Detected(Kind.DAMAGED, "a zip archive with bytes at its start that belong to no entry", present)
    return _by_names(file, members, present)


def _problem_of_end(file: BinaryIO, present: int) -> tuple[Kind, str] | None:
    """What is wrong with the records at the end, where that tells a cut-off file from another damage."""
    file.seek(max(present - _END.size - 0xFFFF - _END64_BYTES, 0))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        return Kind.TRUNCATED, "a zip archive without its end"
    _, _, _, _, _, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        return Kind.TRUNCATED, "a zip archive without its end, or with other bytes behind it"
    if 0xFFFFFFFF in (length, start) and at >= _END64_BYTES:
        # Beyond 4 GiB the figures stand in the wide record, 40 bytes behind its start.
        length, start = struct.unpack_from("<2Q", tail, at - _END64_BYTES + 40)
    if length > _MOST_DIRECTORY_BYTES:
        return Kind.DAMAGED, f"a zip archive with a directory of {length:,} bytes"
    if start + length < present - (len(tail) - at) - _END64_BYTES:
        return Kind.DAMAGED, "a zip archive whose end belongs to another archive: cut off, or two files in one"
    return None


def _by_names(file: BinaryIO, members: tuple[Member, ...], present: int) -> Detected:
    names = {member.name: member for member in members}
    # Writers put everything into one folder, whose name is the file's at the time of writing.
    inner = {name.partition("/")[2] for name in names}
    has_graph = any(_GRAPH.fullmatch(name) for name in inner)
    if any("/data/aotinductor/" in f"/{name}" for name in names):
        beside = ", beside an exported graph" if has_graph else ""
        return Detected(Kind.AOTINDUCTOR, f"an AOTInductor package: a compiled library{beside}", present)
    if has_graph:
        return Detected(Kind.EXPORT_ARCHIVE, "a torch.export archive", present)
    if "serialized_exported_program.json" in names.keys() | inner:
        return Detected(Kind.EXPORT_ARCHIVE, "a torch.export archive of torch 2.6 or older", present)
    if "constants.pkl" in inner:
        return Detected(Kind.TORCHSCRIPT, "TorchScript (torch.jit.save)", present)
    if any(name.startswith(".data/extern_modules") for name in inner):
        return Detected(Kind.PICKLE, "a torch.package archive: a pickle and the Python code that it needs", present)
    pickles = [member for name, member in names.items() if f"/{name}".endswith("/data.pkl")]
    if pickles:
        return _saved(file, pickles[0], present)
    return _other(tuple(names), inner, present)


def _other(names: tuple[str, ...], inner: set[str], present: int) -> Detected:
    if all(name.endswith(".npy") for name in names):
        return Detected(Kind.NUMPY, f"a NumPy archive (.npz), entries: {len(names):,}", present)
    if "config.json" in names and any(name.startswith("model.weights") for name in names):
        return Detected(Kind.TENSORFLOW, "a Keras model (.keras)", present)
    if "saved_model.pb" in names or "saved_model.pb" in inner:
        return Detected(Kind.TENSORFLOW, "a zipped TensorFlow SavedModel", present)
    return Detected(Kind.ARCHIVE, f"a zip archive of something else (its first entry: {printable(names[0])})", present)


def _saved(file: BinaryIO, member: Member, present: int) -> Detected:
    data = _member_start(file, member)
    if data is None:
        return Detected(Kind.DAMAGED, "a torch.save archive whose data.pkl cannot be read", present)
    return detect_saved(io.BytesIO(data), present, is_cut=member.bytes > len(data))


def _member_start(file: BinaryIO, member: Member) -> bytes | None:
    """The first bytes of a member, at most ``MOST_PICKLE_BYTES``; None where they cannot be had."""
    file.seek(member.header)
    head = file.read(_LOCAL_BYTES)
    if len(head) < _LOCAL_BYTES or not head.startswith(LOCAL_SIGNATURE) or member.flags & 1:
        return None
    names, extras = struct.unpack_from("<2H", head, 26)
    file.seek(names + extras, 1)
    packed = file.read(min(member.packed_bytes, MOST_PICKLE_BYTES))
    if member.method == 0:
        return packed
    if member.method != _DEFLATED:
        return None
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MOST_PICKLE_BYTES)
    except zlib.error:
        return None
