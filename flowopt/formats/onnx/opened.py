"""Open a file for reading, and nothing that only looks like it: no link, no pipe, no device, no second name.

A link or a second name (hard link) can lead to any file of the machine, and ONNX Runtime follows the latter. What is
opened here is read through the same descriptor afterwards, so that a swapped name changes nothing.

Source: openat(2), and the ONNX advisories CVE-2026-34446 (hard link) and CVE-2026-34447 (symbolic link).
"""

import errno
import mmap
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flowopt.errors import FlowoptError, MalformedModel

# Absent on Windows, where links need a privilege to create and pipes are no files.
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    # Without it, opening a pipe waits for a writer.
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_FOLDER_FLAGS: Final = _FLAGS | getattr(os, "O_DIRECTORY", 0)
# What open(2) answers to a link under O_NOFOLLOW; FreeBSD has an answer of its own.
_IS_LINK: Final = {errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP), errno.ENOTDIR}
_COPY: Final = "copy the files themselves there: cp -rL"


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file, mapped read-only; an empty file has no mapping. ``identity``: device and inode."""

    size: int
    data: mmap.mmap | None
    identity: tuple[int, int]

    def close(self) -> None:
        """Give the mapping back. Whoever read the data has to be done with it."""
        if self.data is not None:
            self.data.close()


def open_model(path: Path) -> OpenedFile:
    """The file that the user named; folders on its way may be links, the file itself may not.

    Raises:
        MalformedModel: it is missing, a link, no regular file, or not readable.
    """
    return _mapped(path, path.name, MalformedModel, None, links=True)


def open_beneath(folder: Path, location: str, refusal: type[FlowoptError]) -> OpenedFile:
    """The file at a relative path of plain components, with no link on its way below ``folder``.

    Raises:
        MalformedModel: it is missing, no regular file, or not readable.
        FlowoptError: it is a link, of the class ``refusal``.
    """
    *parents, name = location.split("/")
    if os.open not in os.supports_dir_fd:
        for end in range(1, len(parents) + 2):
            if folder.joinpath(*location.split("/")[:end]).is_symlink():
                raise _link(location, refusal)
        return _mapped(folder / location, location, refusal, None)
    with ExitStack() as opened:
        at = _open(folder, location, refusal, None, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, at)
        for parent in parents:
            at = _open(parent, location, refusal, at, _FOLDER_FLAGS)
            opened.callback(os.close, at)
        return _mapped(name, location, refusal, at)


def _mapped(
    path: Path | str, shown: str, refusal: type[FlowoptError], folder: int | None, *, links: bool = False
) -> OpenedFile:
    descriptor = _open(path, shown, refusal, folder, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MalformedModel(f"{shown} is not a regular file", hint="only files hold models and weights")
        if status.st_nlink != 1 and not links:
            raise _link(shown, refusal)
        data = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ) if status.st_size else None
        return OpenedFile(status.st_size, data, (status.st_dev, status.st_ino))
    finally:
        os.close(descriptor)


def _open(path: Path | str, shown: str, refusal: type[FlowoptError], folder: int | None, flags: int) -> int:
    try:
        return os.open(path, flags, dir_fd=folder) if folder is not None else os.open(path, flags)
    except FileNotFoundError as error:
        raise MalformedModel(f"{shown} is missing", hint="copy the whole folder, or build it again") from error
    except OSError as error:
        if error.errno in _IS_LINK:
            raise _link(shown, refusal) from error
        raise MalformedModel(f"{shown} cannot be opened: {error.strerror}", hint="check what it is: ls -l") from error


def _link(shown: str, refusal: type[FlowoptError]) -> FlowoptError:
    return refusal(
        f"{shown} is a link, or leads through one", why="a link could lead to any file of this machine", hint=_COPY
    )
