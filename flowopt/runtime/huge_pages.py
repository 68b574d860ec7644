"""Huge pages under the weights that a session just packed.

A short batch reads every weight once and computes little with it, so that the processor waits for translations of
addresses: 4 KiB at a time, a gigabyte has 262,144 of them. Linux gives huge pages only where it is asked to
(``transparent_hugepage/enabled`` is ``madvise`` on most servers), and ONNX Runtime does not ask. ``MADV_COLLAPSE``
(Linux 6.1) moves what already lies in memory; the numbers in it stay what they are.

Where the kernel is older, has them switched off, or has no memory in one piece, pages stay small: that costs speed
alone, and is no error.
"""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

Region = tuple[int, int]

_MADV_COLLAPSE: Final = 25
_MAPS = Path("/proc/self/maps")
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS_FIELDS_OF_A_FILE: Final = 6


@contextlib.contextmanager
def in_huge_pages(*, is_wanted: bool = True) -> Iterator[None]:
    """Put what is allocated inside, and is still allocated at the end, into huge pages.

    Args:
        is_wanted: False does nothing.
    """
    size = _huge_page_size() if is_wanted else None
    if size is None:
        yield
        return
    before = _anonymous_regions()
    yield
    for start, end in _without(_anonymous_regions(), before):
        first, last = -(-start // size) * size, end // size * size
        if first < last:
            _collapse(first, last - first)


def _huge_page_size() -> int | None:
    """Bytes of one; None where there are none, or the administrator switched them off."""
    try:
        enabled = (_SETTINGS / "enabled").read_text(encoding="ascii")
        return None if "[never]" in enabled else int((_SETTINGS / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _anonymous_regions() -> list[Region]:
    """Writable private memory without a file behind it, by address."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, mode, *rest = line.split(maxsplit=_MAPS_FIELDS_OF_A_FILE - 1)
        is_named = len(rest) == _MAPS_FIELDS_OF_A_FILE - 2 and rest[-1].strip() != "[heap]"
        if mode == "rw-p" and not is_named:
            start, end = addresses.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _without(regions: Sequence[Region], others: Sequence[Region]) -> Iterator[Region]:
    """The parts of some regions that lie in none of the others; both by address."""
    for start, end in regions:
        at = start
        for low, high in others:
            if high <= at or low >= end:
                continue
            if at < low:
                yield at, low
            at = max(at, high)
        if at < end:
            yield at, end


def _collapse(start: int, length: int) -> None:
    """Failures stay without consequence: see above."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_COLLAPSE)
