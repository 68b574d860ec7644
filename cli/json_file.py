"""``--json FILE|-`` and other results as text: a whole file or none."""

import os
import sys
from pathlib import Path

from flowopt.errors import CannotWrite
from flowopt.formats.whole_file import whole_file

STDOUT = Path("-")


def require_writable(path: Path | None, option: str = "--json") -> None:
    """Refuse a file that cannot be written before the work, not after it.

    Raises:
        CannotWrite: no such folder, no permission, or the path is a folder.
    """
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise CannotWrite(f"{option} {path} is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        raise CannotWrite(f"{option} {path}: there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise CannotWrite(f"{option} {path}: no permission to write to {path.parent}", hint="name another file")


def write_json(path: Path, text: str) -> None:
    """``write_text`` for ``--json``."""
    write_text(path, text, "--json")


def write_text(path: Path, text: str, option: str) -> None:
    """Write what an option asks for to a file, or to stdout for ``-``.

    A reader of the file sees the old text or the new one, whole.

    Raises:
        CannotWrite: the file.
        OSError: the disk is full or fails.
    """
    if path == STDOUT:
        sys.stdout.write(text)
        return
    with whole_file(path, f"for {option} to", subject=option) as file:
        file.write(text.encode())
