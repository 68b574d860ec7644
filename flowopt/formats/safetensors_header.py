"""The header of a safetensors file, checked against everything that the format demands.

    8 bytes: length N, little endian | N bytes: JSON, padded with spaces | the tensors' bytes, without holes

Source: https://github.com/huggingface/safetensors, README, section "Format".
"""

import itertools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from flowopt.errors import MalformedModel
from flowopt.formats.bounded_json import parse_json
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.printable import printable

MOST_HEADER_BYTES: Final = 100_000_000
_LENGTH: Final = struct.Struct("<Q")
_AGAIN: Final = "download or copy it again, or save it again with safetensors.torch.save_file"
_MOST_BYTES: Final = 1 << 62

_BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@final
@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: its bytes are ``[start, end)`` of the data, which begins at ``SafetensorsHeader.data_start``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@final
@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What the header says. ``file_bytes``: the size that the file must have."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int


def read_header(path: Path, limits: Limits = DEFAULT_LIMITS) -> SafetensorsHeader:
    """The header of a file whose size fits it: every byte behind it belongs to exactly one tensor.

    Raises:
        MalformedModel: not a safetensors file, cut off, with bytes at its end that belong to no tensor, or with a
            header that contradicts itself.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        present = file.seek(0, 2)
        file.seek(0)
        length = header_bytes(file.read(_LENGTH.size), present)
        header = parse_header(file.read(length), limits)
    if header.file_bytes > present:
        raise _malformed(f"it is cut off: it has {present:,} of {header.file_bytes:,} bytes")
    if header.file_bytes < present:
        raise _malformed(f"{present - header.file_bytes:,} bytes at its end belong to no tensor")
    return header


def header_bytes(first: bytes, present: int) -> int:
    """Length of the header, from the first 8 bytes of a file of ``present`` bytes.

    Raises:
        MalformedModel: the length is beyond the format's limit or the file's end.
    """
    if len(first) < _LENGTH.size:
        raise _malformed(f"it has {present:,} bytes, fewer than the length of a header")
    length = int(_LENGTH.unpack(first[: _LENGTH.size])[0])
    if length > MOST_HEADER_BYTES:
        raise _malformed(f"its header would have {length:,} bytes; the format allows {MOST_HEADER_BYTES:,}")
    if length > present - _LENGTH.size:
        raise _malformed(f"it is cut off: it has {present:,} of at least {length + _LENGTH.size:,} bytes")
    return length


def parse_header(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> SafetensorsHeader:
    """The header's JSON, with every rule of the format but the size of the file.

    Raises:
        MalformedModel: a rule is broken; the message names the tensor.
    """
    if not raw.startswith(b"{"):
        raise _malformed("its header does not begin with '{'")
    entries = parse_json(raw, what="the header of the safetensors file", limits=limits)
    if not isinstance(entries, dict):
        raise _malformed("its header is no JSON object")
    metadata = _metadata(entries.pop("__metadata__", {}))
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            problem = "overlap another's" if tensor.start < end else f"leave a hole of {tensor.start - end:,} bytes"
            raise _malformed(f"the bytes of {_shown(name)} {problem}")
        end = tensor.end
    start = _LENGTH.size + len(raw)
    return SafetensorsHeader(tensors, metadata, start, start + end)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _malformed("its __metadata__ is not a map from text to text")
    return value


def _tensor(name: str, entry: object) -> StoredTensor:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _malformed(f"{_shown(name)} lacks one of dtype, shape and data_offsets")
    dtype, shape = entry["dtype"], _naturals(name, "shape", entry["shape"])
    offsets = _naturals(name, "data_offsets", entry["data_offsets"])
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _malformed(f"{_shown(name)} has the dtype {_shown(dtype)}, which the format does not know")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(f"{_shown(name)} has the data_offsets {printable(str(offsets))}, not a begin and an end")
    bits = _product(name, shape) * _BITS[dtype]
    start, end = offsets
    if bits != (end - start) * 8:
        needs = f"{dtype} {list(shape)[:8]} needs {bits / 8:,.10g} bytes"
        raise _malformed(f"{_shown(name)} has {end - start:,} bytes, but {needs}")
    return StoredTensor(dtype, shape, start, end)


def _naturals(name: str, key: str, value: object) -> tuple[int, ...]:
    # bool is an int to Python, and not to the format.
    if isinstance(value, list) and all(type(number) is int and 0 <= number < _MOST_BYTES for number in value):
        return tuple(value)
    raise _malformed(f"{_shown(name)} has a {key} that is no list of sizes")


def _product(name: str, shape: tuple[int, ...]) -> int:
    """Number of elements. Step by step, since a shape of very many sizes has a product of very many digits."""
    if 0 in shape:
        return 0
    for product in itertools.accumulate(shape, initial=1):
        if product > _MOST_BYTES:
            raise _malformed(f"{_shown(name)} has a shape of more elements than any file holds")
    return math.prod(shape)


def _shown(value: object) -> str:
    return printable(json.dumps(value) if isinstance(value, str | int) else type(value).__name__, 120)


def _malformed(problem: str) -> MalformedModel:
    return MalformedModel(f"the safetensors file cannot be read: {problem}", hint=_AGAIN)
