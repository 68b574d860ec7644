"""The folder under an artifact: made, locked, synced, and removed again."""

import contextlib
import os
import sys
from pathlib import Path

from flowopt.errors import CannotWrite

if sys.platform != "win32":
    import fcntl


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents.

    Returns:
        The folders that were not there before, innermost first.

    Raises:
        CannotWrite: it is a file, or may not be created.
    """
    missing: list[Path] = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return missing


def remove_empty_folders(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def locked_descriptor(folder: Path) -> int | None:
    """A descriptor of the folder that holds its exclusive lock; the lock ends with the descriptor or the process.

    The lock is on the folder itself, so that no lock file stays behind. None where there are no such locks.

    Raises:
        BlockingIOError: another writer holds it.
        CannotWrite: the folder may not be opened, or went away.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and lock, a writer that gave up may have removed the folder that it had made.
        if not folder.is_dir() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise CannotWrite(f"{folder} was removed by another writer", hint="run it again")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: a rename is durable only then."""
    if sys.platform != "win32":
        sync_file(folder)


def cannot_write(folder: Path, error: OSError) -> CannotWrite:
    """The error for a folder that the operating system refuses."""
    return CannotWrite(f"cannot write to {folder}: {error.strerror or error}", hint="choose another folder with -o")
