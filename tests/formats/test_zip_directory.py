import io
import zipfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowopt.errors import MalformedModel
from flowopt.formats.pt2.archive import read_archive
from flowopt.formats.zip_directory import read_directory, stored_extents
from tests.hostile.pt2_archive import Entry, packed, sound_bytes

CONTENTS = {"a": b"", "b/c.txt": b"hello", "d" * 300: bytes(1000), "\u00fc": b"PK\x03\x04PK\x05\x06"}


class Unseekable(io.RawIOBase):
    """Makes zipfile write data descriptors."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self.content += piece
        return len(piece)


def by_python(*, wide: bool = False, comment: bytes = b"", descriptors: bool = False) -> bytes:
    stream = Unseekable()
    file = io.BytesIO()
    with zipfile.ZipFile(stream if descriptors else file, "w") as archive:
        archive.comment = comment
        for name, content in CONTENTS.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as member:
                member.write(content)
    return bytes(stream.content) if descriptors else file.getvalue()


def read(raw: bytes) -> dict[str, bytes]:
    file = io.BytesIO(raw)
    extents = stored_extents(file, read_directory(file))
    return {name: raw[start : start + length] for name, (start, length) in extents.items()}


VALID = {
    "plain": by_python(),
    "wide": by_python(wide=True),
    "comment": by_python(comment=b"made by hand"),
    "descriptors": by_python(descriptors=True),
    "wide-descriptors": by_python(wide=True, descriptors=True),
    "ours": packed([Entry(name, content) for name, content in CONTENTS.items()]),
}


@pytest.mark.parametrize("name", VALID)
def test_reads_what_python_reads(name: str) -> None:
    assert read(VALID[name]) == CONTENTS


def test_reads_what_torch_writes() -> None:
    with zipfile.ZipFile(io.BytesIO(sound_bytes())) as archive:
        assert read(sound_bytes()) == {n: archive.read(n) for n in archive.namelist()}


def test_an_empty_archive_has_no_members() -> None:
    file = io.BytesIO(packed([]))
    assert read_directory(file).members == ()


@pytest.mark.parametrize("kept", [0, 10, 21, 22, 100])
def test_a_piece_is_refused(kept: int) -> None:
    with pytest.raises(MalformedModel):
        read(VALID["plain"][:kept])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_flipped_bits_are_refused_or_change_contents_alone(name: str, data: st.DataObject) -> None:
    raw = bytearray(VALID[name])
    for bit in data.draw(st.lists(st.integers(0, len(raw) * 8 - 1), min_size=1, max_size=3, unique=True)):
        raw[bit // 8] ^= 1 << bit % 8
    try:
        found = read(bytes(raw))
    except MalformedModel as error:
        assert error.hint
        return
    # Nothing but the bytes of members may differ, and those the checksums guard.
    assert [len(content) for content in found.values()] == [len(content) for content in CONTENTS.values()]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_archive_never_reads_as_another(data: st.DataObject) -> None:
    raw = bytearray(sound_bytes())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    sound = read_archive(io.BytesIO(sound_bytes()), "sound")
    try:
        found = read_archive(io.BytesIO(bytes(raw)), "flipped")
    except MalformedModel as error:
        assert error.hint
        return
    assert (found.document, found.weights, found.constants) == (sound.document, sound.weights, sound.constants)
