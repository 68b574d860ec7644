"""A safetensors header is read as the library reads it, or refused with a reason."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from flowopt.errors import MalformedModel
from flowopt.formats.safetensors_header import StoredTensor, read_header


def _file(folder: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "file"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def _entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64)
    tensors = {str(dtype): torch.zeros(2, 3).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "file", {"format": "pt"})
    header = read_header(tmp_path / "file")
    assert {name: list(t.shape) for name, t in header.tensors.items()} == {n: list(t.shape) for n, t in tensors.items()}
    assert header.metadata == {"format": "pt"}
    raw = (tmp_path / "file").read_bytes()
    one = header.tensors["scalar"]
    assert raw[header.data_start + one.start : header.data_start + one.end] == b"\0\0\x80?"


def test_reads_a_tensor_of_half_bytes(tmp_path: Path) -> None:
    header = read_header(_file(tmp_path, {"a": _entry("F4", [3, 2], [0, 3])}, bytes(3)))
    assert header.tensors == {"a": StoredTensor("F4", (3, 2), 0, 3)}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": _entry()}, bytes(7), "cut off"),
        ({"a": _entry()}, bytes(9), "1 bytes at its end belong to no tensor"),
        ({"a": _entry(), "b": _entry(offsets=[4, 12])}, bytes(12), "overlap"),
        ({"a": _entry(), "b": _entry(offsets=[12, 20])}, bytes(20), "hole of 4 bytes"),
        ({"a": _entry(offsets=[4, 12])}, bytes(12), "hole"),
        ({"a": _entry("F33")}, bytes(8), "F33"),
        ({"a": _entry(["F32"])}, bytes(8), "dtype"),
        ({"a": _entry(shape=[3])}, bytes(8), "needs 12 bytes"),
        ({"a": _entry("F4", [3], [0, 2])}, bytes(2), "needs 1.5 bytes"),
        ({"a": _entry(shape=[-2])}, bytes(8), "shape"),
        ({"a": _entry(shape=[True])}, bytes(8), "shape"),
        ({"a": _entry(shape=[1 << 61] * 9)}, bytes(8), "more elements than any file"),
        ({"a": _entry(offsets=[8, 0])}, bytes(8), "data_offsets"),
        ({"a": _entry(offsets=[0])}, bytes(8), "data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "lacks one"),
        ({"a": 5}, b"", "lacks one"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        (b'{"a":' * 100_000, b"", "nested"),
        (b"[]", b"", "begin with"),
        (b"{", b"", "JSON"),
    ],
)
def test_refuses_a_header_that_breaks_a_rule(tmp_path: Path, header: object, data: bytes, reason: str) -> None:
    path = _file(tmp_path, header, data)
    with pytest.raises(MalformedModel, match=reason) as caught:
        read_header(path)
    assert caught.value.hint
    # What is refused here, the library refuses too: no stricter reading than the format's.
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "pt")


def test_refuses_a_name_twice_which_the_library_takes(tmp_path: Path) -> None:
    entry = json.dumps(_entry()).encode()
    path = _file(tmp_path, b'{"a":%b,"a":%b}' % (entry, entry), bytes(8))
    with safetensors.safe_open(path, "pt"), pytest.raises(MalformedModel, match="'a' stands twice"):
        read_header(path)


@pytest.mark.parametrize("raw", [b"", b"\x05\0\0", b"\xff" * 8 + b"{", b"\x20\0\0\0\0\0\0\0{}"])
def test_refuses_a_length_that_the_file_does_not_have(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(MalformedModel):
        read_header(tmp_path / "file")


def test_names_in_messages_cannot_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(MalformedModel) as caught:
        read_header(_file(tmp_path, {"\x1b[2J\u202e": _entry("\x1b[0m")}, bytes(8)))
    assert caught.value.message.isprintable()
