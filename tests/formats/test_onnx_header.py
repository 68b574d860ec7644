"""The header agrees with onnx's own parser, and refuses what two readers could read as two things."""

import pytest
from onnx import StringStringEntryProto, helper

from flowopt.errors import MalformedModel
from flowopt.formats.onnx.header import read_header


def model(**notes: str) -> bytes:
    made = helper.make_model(helper.make_graph([], "g", [], []), producer_name="writer", producer_version="1.2")
    helper.set_model_props(made, notes)
    content: bytes = made.SerializeToString()
    return content


def test_the_header_is_what_onnx_wrote() -> None:
    header = read_header(model(first="1", second="x" * 100_000))
    assert (header.producer, header.producer_version) == ("writer", "1.2")
    assert header.ir_version == helper.make_model(helper.make_graph([], "g", [], [])).ir_version
    assert header.metadata == {"first": "1", "second": "x" * 100_000}


def test_a_file_without_a_header_has_an_empty_one() -> None:
    header = read_header(b"")
    assert (header.producer, header.ir_version, header.metadata) == ("", 0, {})


def test_a_key_twice_is_refused() -> None:
    twice = b"\x72" + bytes([len(entry := StringStringEntryProto(key="k", value="v").SerializeToString())]) + entry
    with pytest.raises(MalformedModel, match="key 'k' twice"):
        read_header(twice + twice)


@pytest.mark.parametrize(
    "content",
    [b"\x72\x03\x12\x01\xff", b"\x12\x01\xff", b"\x72\x05\x12", b"\x70\x01", b"\x0a\x01a"],
    ids=["value is no text", "producer is no text", "cut off", "metadata is a number", "version is a text"],
)
def test_damaged_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedModel, match="its bytes are damaged"):
        read_header(content)
