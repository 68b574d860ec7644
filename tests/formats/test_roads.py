"""Whatever file is given, the message says what it is and which road leads on."""

from pathlib import Path

import pytest

from flowopt.errors import FlowoptError, InternalError, MalformedModel, Untrusted, UserError
from flowopt.formats.detect import Detected, Kind, detect
from flowopt.formats.roads import refusal
from tests.hostile.valid_files import lfs_pointer

_READ_ELSEWHERE = {Kind.EXPORT_ARCHIVE, Kind.STATE_DICT, Kind.PICKLED_MODULE, Kind.SAFETENSORS}
_COMPILED = {Kind.TORCHSCRIPT, Kind.AOTINDUCTOR, Kind.EXECUTORCH, Kind.ORT, Kind.PROGRAM}


@pytest.mark.parametrize("kind", sorted(set(Kind) - _READ_ELSEWHERE))
def test_every_refusal_says_what_to_try_on_one_screen(kind: Kind) -> None:
    error = refusal(Detected(kind, "a thing of some kind"), "m.pt")
    expected = Untrusted if kind in _COMPILED else UserError if kind in {Kind.ONNX, Kind.FOLDER} else MalformedModel
    assert type(error) is expected
    assert "m.pt" in error.message
    assert error.hint and "{" not in str(error)
    assert len(str(error).splitlines()) <= 8 and max(map(len, str(error).splitlines())) <= 140


@pytest.mark.parametrize("kind", sorted(_READ_ELSEWHERE))
def test_a_kind_with_a_reader_is_no_refusal(kind: Kind) -> None:
    assert isinstance(refusal(Detected(kind, "a thing"), "m.pt"), InternalError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lfs_pointer(3_145_728), ("Git LFS pointer to a file of 3,145,728 bytes", "git lfs pull")),
        (b"<html><title>Log in</title></html>", ("titled 'Log in'", "download it again")),
        (b"", ("m.pt is empty", "download")),
        (b"\x7f\0\0\0\0\0\0\0{}", ("10 of 135 bytes", "download")),
        (b"\x18\0\0\0ORTM" + bytes(64), ("onnxruntime", "flowopt optimize my_model:factory")),
        (b"\x30\0\0\0PTMF" + bytes(64), ('torch.jit.load("m.pt").state_dict(), "weights.pt")', "--trust weights")),
        (b"GGUF" + bytes(64), ("GGUF", "flowopt optimize my_model:factory")),
        (b"\x80\x04]\x94.", ("a list", "torch.export.save(")),
        (b"\x01\x02\x03\x04", ("no format", "torch.export.save(")),
    ],
)
def test_says_what_the_file_is_and_the_next_command(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    message = str(refusal(detect(tmp_path / "m.pt"), "m.pt"))
    assert all(word in message for word in words), message


def test_a_name_cannot_reach_the_terminal_as_a_command() -> None:
    error: FlowoptError = refusal(Detected(Kind.TORCHSCRIPT, "TorchScript"), "m\x1b[2J\n.pt")
    assert (error.message + error.hint).replace("\n", "").isprintable()
