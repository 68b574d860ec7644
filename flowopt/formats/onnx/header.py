"""Who wrote an ONNX file, and the notes that it carries about itself.

Source: onnx/onnx.proto3, messages ModelProto and StringStringEntryProto (field numbers).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flowopt.formats.onnx.wire import BYTES, VARINT, Data, Field, damaged, fields, require_wire, text

_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _METADATA = 1, 2, 3, 14
_KEY, _VALUE = 1, 2
# An interface of thousands of outputs.
_MOST_VALUE_BYTES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class OnnxHeader:
    """Version of the format, name and version of the writer, and its key-value notes (``metadata_props``)."""

    ir_version: int
    producer: str
    producer_version: str
    metadata: Mapping[str, str]


def read_header(data: Data) -> OnnxHeader:
    """The header of a ModelProto.

    Raises:
        MalformedModel: bytes that are no protobuf, a key twice, a text that is none, or a note above 16 MiB.
    """
    found: dict[int, str] = {}
    metadata: dict[str, str] = {}
    ir_version = 0
    for one in fields(data, 0, len(data)):
        if one.number == _IR_VERSION:
            require_wire(one, VARINT)
            ir_version = one.value
        elif one.number in (_PRODUCER, _PRODUCER_VERSION):
            found[one.number] = text(data, one)
        elif one.number == _METADATA:
            key, value = _entry(data, one)
            if key in metadata:
                raise damaged(f"its metadata has the key {key[:100]!r} twice")
            metadata[key] = value
    return OnnxHeader(ir_version, found.get(_PRODUCER, ""), found.get(_PRODUCER_VERSION, ""), metadata)


def _entry(data: Data, one: Field) -> tuple[str, str]:
    require_wire(one, BYTES)
    key = value = ""
    for part in fields(data, one.start, one.end):
        if part.number == _KEY:
            key = text(data, part)
        elif part.number == _VALUE:
            value = _long_text(data, part)
    return key, value


def _long_text(data: Data, one: Field) -> str:
    require_wire(one, BYTES)
    if one.end - one.start > _MOST_VALUE_BYTES:
        raise damaged(f"a value of its metadata has {one.end - one.start:,} bytes")
    try:
        return data[one.start : one.end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged("a value of its metadata is no text") from error
