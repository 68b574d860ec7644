"""Source inside of stored modules is replaced by machine code."""

import struct

import pytest

pytest.importorskip("tvm")

from flowopt.errors import InternalError
from flowopt.lowering.tvm.cuda.cuda_library import with_binary


def _sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _stored(form: bytes, code: bytes) -> bytes:
    device = _sized(b"cuda") + _sized(_sized(form) + _sized(b"functions") + _sized(code))
    rest = b"tree" + _sized(b"_lib") + device + _sized(b"after")
    return _sized(rest)


def test_the_form_the_code_and_every_size_around_them_change() -> None:
    assert with_binary(_stored(b"cuda", b"source"), b"source", b"binary code") == _stored(b"fatbin", b"binary code")


@pytest.mark.parametrize(
    "stored", [b"", _stored(b"ptx", b"source"), _stored(b"cuda", b"other"), _stored(b"cuda", b"source")[:-1]]
)
def test_another_form_is_refused(stored: bytes) -> None:
    with pytest.raises(InternalError, match=r"0\.27"):
        with_binary(stored, b"source", b"binary")
