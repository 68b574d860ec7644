"""The fields of a protobuf message, read from its bytes without a schema.

Protobuf parsers differ in what they forgive: an overlong varint, a length beyond the parent, a group. Whatever two of
them could read as two different messages is refused here.

Source: protobuf.dev/programming-guides/encoding.
"""

import mmap
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from flowopt.errors import MalformedModel

Data = bytes | mmap.mmap

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
_FIXED_BYTES: Final = {FIXED64: 8, FIXED32: 4}
_MOST_VARINT_BYTES: Final = 10
# Tags and lengths have 32 bits; longer ones are read differently by different parsers.
_MOST_HEADER_BYTES: Final = 5
_LARGEST_TAG: Final = (1 << 32) - 1
_CONTINUED: Final = bytes(range(0x80, 0x100))
_ENDLESS_VARINT: Final = re.compile(rb"[\x80-\xff]{%d}" % _MOST_VARINT_BYTES)
_CHUNK_BYTES: Final = 1 << 20
# A name that fits no message is no name.
_MOST_TEXT_BYTES: Final = 1 << 16


class Field(NamedTuple):
    """One field. Its payload lies at ``start:end``; ``value`` is the number of a varint, else 0."""

    number: int
    wire: int
    start: int
    end: int
    value: int


def fields(data: Data, start: int, end: int) -> Iterator[Field]:
    """The fields of the message at ``start:end``, in order.

    Raises:
        MalformedModel: (while iterating) a field that is cut off, longer than its message, a group, or no field.
    """
    position = start
    while position < end:
        tag, position = varint(data, position, end, _MOST_HEADER_BYTES)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag > _LARGEST_TAG:
            raise damaged(f"no field has the number {number}")
        value = 0
        if wire == BYTES:
            length, position = varint(data, position, end, _MOST_HEADER_BYTES)
            after = position + length
        elif wire == VARINT:
            value, after = varint(data, position, end)
        elif wire in _FIXED_BYTES:
            after = position + _FIXED_BYTES[wire]
        else:
            raise damaged(f"field {number} has wire type {wire}, which ONNX does not use")
        if after > end:
            raise damaged(f"field {number} is longer than what holds it")
        yield Field(number, wire, position, after, value)
        position = after


def varint(data: Data, position: int, end: int, most: int = _MOST_VARINT_BYTES) -> tuple[int, int]:
    """An unsigned number and the position after it.

    Raises:
        MalformedModel: it goes beyond ``end``, or has more than ``most`` bytes or 64 bits.
    """
    value = shift = 0
    for at in range(position, min(position + most, end)):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise damaged("a number has more than 64 bits")
            return value, at + 1
        shift += 7
    raise damaged("a number is cut off" if end - position < most else "a number does not end")


def packed_varints(data: Data, field: Field) -> int:
    """How many numbers a packed field holds, counted without decoding them.

    Raises:
        MalformedModel: the last number is cut off, or one does not end.
    """
    if field.start == field.end:
        return 0
    if data[field.end - 1] >= 0x80:
        raise damaged("a packed number is cut off")
    if _ENDLESS_VARINT.search(data, field.start, field.end):
        raise damaged("a packed number does not end")
    return sum(
        len(data[at : min(at + _CHUNK_BYTES, field.end)].translate(None, _CONTINUED))
        for at in range(field.start, field.end, _CHUNK_BYTES)
    )


def text(data: Data, field: Field) -> str:
    """A string field.

    Raises:
        MalformedModel: it is no string, no UTF-8, or longer than 64 KiB.
    """
    require_wire(field, BYTES)
    if field.end - field.start > _MOST_TEXT_BYTES:
        raise damaged(f"a name has {field.end - field.start:,} bytes")
    try:
        return data[field.start : field.end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged("a name is no text") from error


def require_wire(field: Field, wire: int) -> None:
    """Refuse a known field of another wire type: a parser with a schema would skip it as unknown.

    Raises:
        MalformedModel: the wire type is not ``wire``.
    """
    if field.wire != wire:
        raise damaged(f"field {field.number} has wire type {field.wire}, not {wire}")


def damaged(what: str) -> MalformedModel:
    """The refusal of bytes that do not say one thing."""
    return MalformedModel(f"its bytes are damaged: {what}", hint="download or copy it again")
