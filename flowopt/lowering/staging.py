"""Write an artifact so that a reader sees the old one or the new one, whole, whatever happens in between.

The model file names its weights, and weights are named by their content, so no file that the old model reads is
ever changed. Hence one rename, that of the model file, replaces the artifact:

1. lock the folder, sweep what dead writers left;
2. stage everything in the same folder, synced; weights get their final name, the report that of its model;
3. rename the model file: the commit point;
4. give the report its name, delete weights that the new model does not read.

A run that dies before 3 leaves the old artifact, after 3 the new one; in both cases the report of that model is found
(``runtime.layout.committed``), and the next run finishes 4.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, final

from flowopt.errors import CannotWrite, InternalError
from flowopt.formats.digest import file_sha256
from flowopt.lowering.folder import (
    cannot_write,
    locked_descriptor,
    make_folders,
    remove_empty_folders,
    sync_file,
    sync_folder,
)
from flowopt.runtime.layout import (
    MODEL_FILES,
    ONNX_MODEL,
    REPORT_FILE,
    TVM_MODEL,
    VERSION_KEY,
    WEIGHTS_NAME,
    committed,
    pending_report_name,
    read_report,
    referenced_weights,
    weights_name,
)

_TEMPORARY = re.compile(r"\.flowopt-(?P<process>\d+)-\d+\b.*")
_PENDING_REPORT = re.compile(r"\.report\.[0-9a-f]{16}\.json")


@final
class Staging:
    """The one writer of an artifact folder: a context manager. Leaving it without ``commit`` leaves no trace.

    Args:
        folder: created when it is missing. A folder that holds other things than an artifact is refused.

    Raises:
        CannotWrite: (on entering) a file, a folder without permission, one with foreign files, or one that another
            process is writing to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._made: list[Path] = []
        self._descriptor: int | None = None
        self._count = 0
        self._digests: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._made = make_folders(self.folder)
        try:
            self._lock()
            _require_own(self.folder)
        except BaseException:
            self._leave()
            raise
        try:
            self._tidy()
            # Tells a second writer who holds the lock.
            self.temporary(".lock")
        except BaseException:
            self._finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def temporary(self, suffix: str) -> Path:
        """A new empty file in the folder, hidden, that is gone at the latest when the staging ends."""
        path = self.folder / f".flowopt-{os.getpid()}-{self._count}{suffix}"
        self._count += 1
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return path

    def require_space(self, size: int) -> None:
        """Refuse early when the disk cannot take ``size`` bytes and a tenth more.

        Raises:
            CannotWrite: there is less.
        """
        free = shutil.disk_usage(self.folder).free
        if free < size * 1.1:
            raise CannotWrite(f"{self.folder} needs {size * 1.1 / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB left")

    def weights(self, chunks: Iterable[bytes | memoryview]) -> tuple[str, ...]:
        """Write a weight file, named by its content; nothing is written for no bytes.

        Returns:
            The file's name, as the model is to refer to it.
        """
        path = self.temporary(".data")
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if size == 0:
            path.unlink()
            return ()
        name = weights_name(digest.hexdigest())
        target = self.folder / name
        if target.exists() and target.stat().st_size == size and file_sha256(target) == digest.hexdigest():
            path.unlink()
        else:
            # New, or a damaged file of that name: the content can only become what the name says.
            os.replace(path, target)
        self._digests[name] = digest.hexdigest()
        return (name,)

    def digest(self, name: str) -> str:
        """The full SHA-256 of weights written here."""
        return self._digests[name]

    def commit(self, model: Path, name: str, report: str) -> None:
        """Put the artifact in place.

        Args:
            model: a staged model file.
            name: its final name, one of ``MODEL_FILES``.
            report: a JSON object; ``model_sha256`` is added.
        """
        if name not in MODEL_FILES:
            raise InternalError(f"a model file is called {' or '.join(MODEL_FILES)}, not {name!r}")
        sync_file(model)
        sha256 = file_sha256(model)
        self._stage_report(report, sha256)
        sync_folder(self.folder)
        os.replace(model, self.folder / name)
        sync_folder(self.folder)
        for made in self._made:
            sync_folder(made.parent)
        self._tidy()

    def _stage_report(self, report: str, model_sha256: str) -> None:
        content = json.loads(report)
        if not isinstance(content, dict):
            raise InternalError("a report is a JSON object")
        path = self.temporary(".json")
        text = json.dumps({**content, "model_sha256": model_sha256}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        sync_file(path)
        os.replace(path, self.folder / pending_report_name(model_sha256))

    def _tidy(self) -> None:
        """Finish what a commit began, and remove everything that the committed artifact does not need."""
        names = os.listdir(self.folder)
        models = [name for name in MODEL_FILES if name in names]
        if len(models) > 1 or any(_PENDING_REPORT.fullmatch(name) for name in names):
            models = self._settled(models)
        used = frozenset[str]().union(*(referenced_weights(self.folder / name) for name in models))
        for name in os.listdir(self.folder):
            orphan = WEIGHTS_NAME.fullmatch(name) and name not in used
            if orphan or _TEMPORARY.fullmatch(name) or _PENDING_REPORT.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)

    def _settled(self, models: list[str]) -> list[str]:
        """Give the committed model its report and remove a model that it replaced; the models that are left."""
        found = committed(self.folder)
        if found is None or found.report is None:
            return models
        pending = self.folder / pending_report_name(found.sha256)
        if pending.exists():
            os.replace(pending, self.folder / REPORT_FILE)
        for name in models:
            if name != found.model.name:
                (self.folder / name).unlink()
        return [found.model.name]

    def _finish(self) -> None:
        try:
            self._tidy()
        finally:
            self._leave()

    def _lock(self) -> None:
        try:
            self._descriptor = locked_descriptor(self.folder)
        except BlockingIOError:
            owner = _owner(self.folder)
            raise CannotWrite(
                f"another run is writing to {self.folder}{f' (process {owner})' if owner else ''}",
                hint="wait for it, or choose another folder with -o",
            ) from None

    def _leave(self) -> None:
        """Remove folders that were made and hold nothing, then unlock."""
        remove_empty_folders(self._made)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _owner(folder: Path) -> str | None:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if found := _TEMPORARY.fullmatch(name):
                return found["process"]
    return None


def _require_own(folder: Path) -> None:
    """Refuse a folder with somebody else's files in it, unless an artifact lies there too."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise cannot_write(folder, error) from error
    patterns = (_TEMPORARY, _PENDING_REPORT, WEIGHTS_NAME)
    foreign = [name for name in names if not any(p.fullmatch(name) for p in patterns)]
    report = read_report(folder / REPORT_FILE)
    if not foreign or (report is not None and "model_sha256" in report):
        return
    for model in (folder / ONNX_MODEL, folder / TVM_MODEL):
        if model.is_file() and VERSION_KEY.encode() in model.read_bytes():
            return
    shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
    raise CannotWrite(
        f"{folder} is not empty and holds no flowopt artifact: {shown}",
        why="files there could be overwritten or deleted",
        hint="choose another folder with -o",
    )
