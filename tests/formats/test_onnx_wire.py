"""The wire format: what has one meaning is read, everything else refused."""

import pytest

from flowopt.errors import MalformedModel
from flowopt.formats.onnx.wire import BYTES, FIXED32, FIXED64, VARINT, Field, fields, packed_varints, text, varint


def read(data: bytes) -> list[Field]:
    return list(fields(data, 0, len(data)))


def test_every_wire_type_is_read() -> None:
    data = b"\x08\x96\x01" + b"\x12\x02hi" + b"\x1d" + bytes(4) + b"\x21" + bytes(8)
    assert [(f.number, f.wire, f.end - f.start, f.value) for f in read(data)] == [
        (1, VARINT, 2, 150),
        (2, BYTES, 2, 0),
        (3, FIXED32, 4, 0),
        (4, FIXED64, 8, 0),
    ]
    assert text(data, read(data)[1]) == "hi"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "cut off"),
        (b"\x08\xff", "cut off"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "does not end"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "64 bits"),
        (b"\x12\x03hi", "longer than what holds it"),
        (b"\x12\xff\xff\xff\xff\x0f", "longer than what holds it"),
        (b"\x12\xff\xff\xff\xff\xff\x0f", "does not end"),
        (b"\x1d\x00", "longer than what holds it"),
        (b"\x00\x00", "number 0"),
        (b"\xff\xff\xff\xff\x7f\x00", "no field has the number"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0e", "wire type 6"),
    ],
)
def test_what_parsers_could_read_differently_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MalformedModel, match=message) as caught:
        read(data)
    assert caught.value.hint


def test_the_largest_numbers_pass() -> None:
    assert varint(b"\xff" * 9 + b"\x01", 0, 10) == ((1 << 64) - 1, 10)
    assert varint(b"\x80" * 9 + b"\x00", 0, 10) == (0, 10)


def test_packed_numbers_are_counted() -> None:
    for data, count in ((b"", 0), (b"\x01\x02", 2), (b"\xff\x01\x00", 2), (b"\x80" * 9 + b"\x01", 1)):
        assert packed_varints(data, Field(1, BYTES, 0, len(data), 0)) == count
    for data in (b"\x01\x80", b"\x80" * 10 + b"\x01"):
        with pytest.raises(MalformedModel):
            packed_varints(data, Field(1, BYTES, 0, len(data), 0))


@pytest.mark.parametrize("data", [b"\x0a\x01\xff", b"\x08\x01", b"\x0a\x80\x80\x08" + b"a" * (1 << 17)])
def test_text_is_short_utf8(data: bytes) -> None:
    with pytest.raises(MalformedModel):
        text(data, read(data)[0])
