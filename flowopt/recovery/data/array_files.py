"""Files of arrays: one, or a folder of them."""

from pathlib import Path
from typing import Final

from torch import Tensor

from flowopt.errors import ModelNotFound, UserError
from flowopt.formats.printable import printable
from flowopt.program.loading.npz import read_npz
from flowopt.program.loading.safetensors_file import read_safetensors

_READERS: Final = {".npz": read_npz, ".safetensors": read_safetensors}
_HOW: Final = "numpy.savez('data.npz', x=..., labels=...) writes one, with a row per sample in each array"
_MOST_NAME: Final = 200


def array_files(path: Path) -> list[Path]:
    """The file itself, or the files of arrays in a folder, by name; hidden ones and inner folders are passed over.

    Raises:
        ModelNotFound: no such file or folder.
        UserError: another kind of file, or a folder without any of these.
    """
    shown = printable(str(path), _MOST_NAME)
    kinds = " or ".join(_READERS)
    if path.is_dir():
        found = [f for f in path.iterdir() if _is_read(f) and f.is_file() and not f.name.startswith(".")]
        if not found:
            raise UserError(f"the folder {shown} holds no {kinds} file", hint=_HOW)
        return sorted(found, key=lambda file: file.name)
    if not path.is_file():
        raise ModelNotFound(
            f"no file or folder of data {shown}", hint=f"{_HOW}\nor name a function: package.module:factory"
        )
    if not _is_read(path):
        raise UserError(f"data is read from {kinds} files, and {shown} is neither", hint=_HOW)
    return [path]


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Every array of a file by name.

    Raises:
        MalformedModel: it is damaged.
    """
    return _READERS[path.suffix.lower()](path)


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in _READERS
