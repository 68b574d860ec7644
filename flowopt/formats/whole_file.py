"""Write a file as a whole: a reader sees the old content or the new one."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flowopt.errors import CannotWrite

DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def whole_file(path: Path, what: str, *, subject: str = "") -> Iterator[BinaryIO]:
    """A file to write into, which takes the name ``path`` once all of it is on the disk.

    Args:
        path: where it is to stand; what lies there stays until then, and for good where writing fails.
        what: is being written, for the note of an error: ``the reproducer``.
        subject: first words of the message of an error, such as an option.

    Raises:
        CannotWrite: the file.
        OSError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.add_note(f"while writing {what} {path}")
        if error.errno in DISK:
            raise
        message = f"{subject} cannot write {path}" if subject else f"cannot write {path}"
        raise CannotWrite(f"{message}: {error.strerror}", hint="name another file") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
