"""What a file is, found in its bytes, whatever its suffix.

Only first bytes, a zip archive's directory, a header and the opcodes of a pickle are read, each up to a bound: a file
of many gigabytes takes no longer than a small one, and nothing in it is run or built.
"""

import os
import stat
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from flowopt.errors import MalformedModel, ModelNotFound, UserError
from flowopt.formats.detect_pickle import LEGACY_START, detect_legacy, detect_pickle
from flowopt.formats.detect_protobuf import detect_protobuf
from flowopt.formats.detect_text import detect_text
from flowopt.formats.detect_zip import detect_zip
from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.limits import DEFAULT_LIMITS, MEBIBYTE, Limits
from flowopt.formats.printable import printable
from flowopt.formats.safetensors_header import header_bytes, parse_header

__all__ = ["Detected", "Kind", "detect"]

_HEAD_BYTES: Final = 4096
# A larger header is checked when the tensors are read; here it would take seconds.
_MOST_HEADER_BYTES: Final = 4 * MEBIBYTE
_MOST_ENTRIES: Final = 1000
_SHOWN_ENTRIES: Final = 4

# (offset, bytes, kind, detail)
_SIGNATURES: Final = (
    (4, b"ORTM", Kind.ORT, "an onnxruntime model in its own format (.ort)"),
    (4, b"ET12", Kind.EXECUTORCH, "an ExecuTorch program (.pte)"),
    (4, b"PTMF", Kind.TORCHSCRIPT, "TorchScript in its mobile form"),
    (4, b"TFL3", Kind.TENSORFLOW, "a TensorFlow Lite model"),
    (0, b"\x89HDF\r\n\x1a\n", Kind.TENSORFLOW, "an HDF5 file, as Keras writes"),
    (0, b"GGUF", Kind.GGUF, "a GGUF file, as llama.cpp reads"),
    (0, b"\x93NUMPY", Kind.NUMPY, "a NumPy array (.npy)"),
    (0, b"\x1f\x8b", Kind.ARCHIVE, "a gzip file"),
    (0, b"7z\xbc\xaf\x27\x1c", Kind.ARCHIVE, "a 7z archive"),
    (4, b"1AY&SY", Kind.ARCHIVE, "a bzip2 file"),
    (0, b"\xfd7zXZ\0", Kind.ARCHIVE, "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", Kind.ARCHIVE, "a zstd file"),
    (0, b"Rar!\x1a\x07", Kind.ARCHIVE, "a rar archive"),
    (257, b"ustar", Kind.ARCHIVE, "a tar archive"),
    (0, b"\x7fELF", Kind.PROGRAM, "a compiled library or program (ELF)"),
    (0, b"MZ\x90\0", Kind.PROGRAM, "a compiled library or program (Windows)"),
    (0, b"\xcf\xfa\xed\xfe", Kind.PROGRAM, "a compiled library or program (macOS)"),
)
# Protocol 2 and later say which they are; before, a pickle begins as text does.
_PROTOCOLS: Final = tuple(b"\x80" + bytes([version]) for version in range(2, 6))
_OLD_PICKLE: Final = (b"(", b"]", b"}", b"c", b"\x80\x00", b"\x80\x01")


def detect(path: Path, limits: Limits = DEFAULT_LIMITS) -> Detected:
    """What ``path`` is. Whatever a regular file holds, this answers and does not raise.

    Raises:
        ModelNotFound: no such file.
        UserError: a pipe, a device or a socket: reading it could wait for ever.
        OSError: the file cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        # A zero byte in a name is a ValueError to Python.
        shown = printable(str(path), 200)
        raise ModelNotFound(f"there is no file {shown}", hint="check the path and the current folder") from error
    if stat.S_ISDIR(mode):
        return _folder(path)
    _require_regular(path, mode)
    # Between the two looks a pipe may have taken the file's place; without O_NONBLOCK opening one waits.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        _require_regular(path, status.st_mode)
        return _of_file(file, status.st_size, limits)


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{printable(str(path), 200)} is a pipe, a device or a socket, not a file",
            hint="write the model to a file first, and give that file",
        )


def _folder(path: Path) -> Detected:
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in islice(entries, _MOST_ENTRIES))
    shown = ", ".join(printable(name, 40) for name in names[:_SHOWN_ENTRIES])
    holds = f" with {shown}{', ...' if names[_SHOWN_ENTRIES:] else ''}" if names else " without any file"
    return Detected(Kind.FOLDER, f"a folder{holds}")


def _of_file(file: BinaryIO, present: int, limits: Limits) -> Detected:
    head = file.read(_HEAD_BYTES)
    if not head:
        return Detected(Kind.EMPTY, "an empty file", present)
    # First, because the length of a header may look like any signature.
    if (found := _safetensors(file, head, present, limits)) is not None:
        return found
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return detect_zip(file, present, limits)
    if head.startswith(LEGACY_START):
        return detect_legacy(file, present)
    for offset, signature, kind, detail in _SIGNATURES:
        if head.startswith(signature, offset):
            return Detected(kind, detail, present)
    found = (
        (detect_pickle(file, present, is_certain=True) if head.startswith(_PROTOCOLS) else None)
        or detect_protobuf(file, present)
        or (detect_pickle(file, present, is_certain=False) if head.startswith(_OLD_PICKLE) else None)
        or detect_text(head, present)
    )
    return found or _unknown(head, present)


def _safetensors(file: BinaryIO, head: bytes, present: int, limits: Limits) -> Detected | None:
    """A file whose 8 bytes of length are followed by JSON, as no other format's are."""
    if head[4:9] != b"\0\0\0\0{":
        return None
    file.seek(8)
    try:
        length = header_bytes(head, present)
        if length > _MOST_HEADER_BYTES:
            return Detected(Kind.SAFETENSORS, f"a safetensors file with a header of {length:,} bytes", present)
        header = parse_header(file.read(length), limits)
    except MalformedModel as error:
        promised = int.from_bytes(head[:8], "little") + 8
        if promised > present:
            return Detected(Kind.TRUNCATED, "a safetensors file", present, promised)
        return Detected(Kind.DAMAGED, f"a safetensors file with a damaged header: {error.message}", present)
    count = f"{len(header.tensors):,} tensor{'' if len(header.tensors) == 1 else 's'}"
    if header.file_bytes > present:
        return Detected(Kind.TRUNCATED, f"a safetensors file of {count}", present, header.file_bytes)
    if header.file_bytes < present:
        extra = present - header.file_bytes
        return Detected(Kind.DAMAGED, f"a safetensors file with {extra:,} bytes too many", present, header.file_bytes)
    return Detected(Kind.SAFETENSORS, f"a safetensors file of {count}", present, keys=tuple(header.tensors))


def _unknown(head: bytes, present: int) -> Detected:
    if not head.strip(b"\0"):
        return Detected(Kind.DAMAGED, "a file that starts with zeros: space was reserved and never filled", present)
    return Detected(Kind.UNKNOWN, f"no format that is known here (it starts with {head[:8].hex(' ')})", present)
