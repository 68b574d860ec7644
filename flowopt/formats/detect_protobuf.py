"""Whether a file is an ONNX or a TensorFlow model, from the outermost fields of its message.

Source: onnx.proto3, message ModelProto; tensorflow/core/protobuf/saved_model.proto; Protocol Buffers, "Encoding".
"""

from dataclasses import dataclass
from typing import BinaryIO, Final, final

from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.printable import printable

_VARINT: Final = 0
_BYTES: Final = 2
# Fields of ModelProto with their wire types; 7 is the graph, 8 the operator sets.
_MODEL_FIELDS: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH: Final = 7
_MOST_FIELDS: Final = 10_000
_MOST_TEXT: Final = 200
_MOST_VERSION: Final = 1000
_MOST_TAG_BYTES: Final = 20


@final
@dataclass(frozen=True, slots=True)
class _Field:
    """One outermost field: ``value`` of a number, or where the payload of ``value`` bytes starts."""

    number: int
    wire: int
    value: int
    start: int

    @property
    def end(self) -> int:
        return self.start + (self.value if self.wire == _BYTES else 0)


def detect_protobuf(file: BinaryIO, present: int) -> Detected | None:
    """The kind of a message; None where the bytes are no message of a known kind. Payloads are not read."""
    seen: set[int] = set()
    producer, position = b"", 0
    for _ in range(_MOST_FIELDS):
        if position >= present:
            break
        field = _field(file, position)
        if field is None or _MODEL_FIELDS.get(field.number) != field.wire:
            return _cut(seen, present) if field is None and present - position < _MOST_TAG_BYTES else None
        if field.number == 1 and not 1 <= field.value <= _MOST_VERSION:
            return None
        if field.number == 2 and field.number not in seen:
            file.seek(field.start)
            producer = file.read(min(field.value, _MOST_TEXT))
        # The version stands first wherever a file is cut off soon: before it, nothing tells a message from noise.
        if field.end > present:
            return _cut(seen, present, field.end) if _is_text(producer) else None
        seen.add(field.number)
        position = field.end
    if seen == {1, 2} and not _is_text(producer):
        return Detected(Kind.TENSORFLOW, "a TensorFlow SavedModel", present)
    if _GRAPH not in seen or not seen & {1, 8}:
        return _cut(seen - {1}, present) if _is_text(producer) else None
    by = f" by {printable(producer.decode(errors='replace'), 40)}" if producer and _is_text(producer) else ""
    return Detected(Kind.ONNX, f"an ONNX model{by}", present)


def _cut(seen: set[int], present: int, end: int | None = None) -> Detected | None:
    if not seen:
        return None
    return Detected(Kind.TRUNCATED, "an ONNX model", present, end)


def _field(file: BinaryIO, position: int) -> _Field | None:
    """The field at ``position``; None where its tag and length cannot be read."""
    file.seek(position)
    raw = file.read(_MOST_TAG_BYTES)
    tag, used = _varint(raw, 0)
    value, end = _varint(raw, used) if used else (0, 0)
    return _Field(tag >> 3, tag & 7, value, position + end) if end else None


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """Value and the position behind it, which is 0 where there is none."""
    value = 0
    for shift, byte in enumerate(raw[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    return 0, 0


def _is_text(raw: bytes) -> bool:
    return raw.decode(errors="ignore").isprintable() and b"\0" not in raw
