"""Broken model files, as disks, networks and wrong clicks make them: many, small, and the same for one seed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowopt.formats.kinds import Kind
from tests.hostile.valid_files import lfs_pointer, valid_files

SUFFIXES = (".pt", ".pt2", ".pth", ".onnx", ".safetensors", ".bin", "")
_PAGE = b"<html><head><title>404: \x1b[31mnot here</title></head><body></body></html>"


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """One file, what it was, and what was done to it. ``harmless``: True where every byte of the model is still
    there, False where some are not, None where nobody can say.
    """

    path: Path
    origin: Kind
    done: str
    harmless: bool | None


Change = Callable[[bytes, random.Random], tuple[str, bytes, bool | None]]


def broken_files(folder: Path, count: int, seed: int) -> Iterator[BrokenFile]:
    """``count`` files below ``folder``, one at a time: each is removed when the next is asked for."""
    chance = random.Random(seed)
    originals = folder / "valid"
    originals.mkdir(parents=True, exist_ok=True)
    valid = [(path.read_bytes(), kind) for path, kind in valid_files(originals).items()]
    for index in range(count):
        # Every kind with every change, whatever the chance; the rest is drawn.
        raw, kind = valid[index % len(valid)]
        change = CHANGES[index // len(valid) % len(CHANGES)]
        done, changed, harmless = change(raw, chance)
        path = folder / f"broken{index}{chance.choice(SUFFIXES)}"
        path.write_bytes(changed)
        yield BrokenFile(path, kind, done, harmless)
        path.unlink(missing_ok=True)


def _truncated(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    keep = chance.randrange(len(raw) or 1)
    return f"cut after {keep} of {len(raw)} bytes", raw[:keep], False if raw else None


def _truncated_at_end(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    lost = chance.randint(1, 32)
    return f"cut {lost} bytes before its end", raw[:-lost], False if raw else None


def _flipped(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    changed = bytearray(raw)
    bits = [chance.randrange(len(raw) * 8) for _ in range(chance.randint(1, 4))] if raw else []
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return f"bits {bits} flipped", bytes(changed), None


def _flipped_at_start(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    _, head, _ = _flipped(raw[:128], chance)
    return "bits of its first bytes flipped", head + raw[128:], None


def _zeroed(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    start, length = chance.randrange(len(raw) or 1), chance.choice((1, 16, 512, 4096))
    filled = raw[:start] + bytes(len(raw[start : start + length])) + raw[start + length :]
    return f"zeros at {start}..{start + length}", filled, None


def _swapped(raw: bytes, _: random.Random) -> tuple[str, bytes, bool | None]:
    half = len(raw) // 2
    return "its halves swapped", raw[half:] + raw[:half], None


def _renamed(raw: bytes, _: random.Random) -> tuple[str, bytes, bool | None]:
    return "only its suffix changed", raw, True


def _doubled(raw: bytes, _: random.Random) -> tuple[str, bytes, bool | None]:
    return "the file twice in one", raw + raw, None


def _followed(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    return "bytes added at its end", raw + chance.randbytes(chance.randint(1, 100)), None


def _noise(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    return "random bytes behind its first ones", raw[: chance.randint(0, 16)] + chance.randbytes(300), False


def _replaced(raw: bytes, chance: random.Random) -> tuple[str, bytes, bool | None]:
    page = chance.choice((b"", _PAGE, lfs_pointer(len(raw)), b"Access denied\n", b'{"error": "gone"}', b"\x80\x04"))
    return f"replaced by {page[:12]!r}", page, False


CHANGES: tuple[Change, ...] = (
    _truncated,
    _flipped,
    _truncated_at_end,
    _flipped_at_start,
    _zeroed,
    _swapped,
    _renamed,
    _doubled,
    _followed,
    _noise,
    _replaced,
)
