"""Read a ``.npz`` file of an unknown author."""

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from flowopt.errors import MalformedModel, ModelNotFound
from flowopt.formats.limits import GIBIBYTE
from flowopt.formats.printable import printable

_MOST_UNPACKED_BYTES: Final = GIBIBYTE
_MOST_EXPANSION: Final = 100
_MOST_WHY: Final = 200
_HOW: Final = "numpy.savez('inputs.npz', x=..., mask=...) writes one"


def read_npz(path: Path) -> dict[str, Tensor]:
    """Every array by name, contiguous; pickles stay unread, and a file that unpacks to very much more is refused.

    Raises:
        ModelNotFound: no such file.
        MalformedModel: it is damaged, or holds something else than arrays of numbers.
    """
    name = printable(path.name)
    if not path.is_file():
        raise ModelNotFound(f"no file {printable(str(path), _MOST_WHY)}", hint=_HOW)
    try:
        _require_no_bomb(path)
        # Arrays of objects are pickles; they stay unread.
        with np.load(path, allow_pickle=False) as arrays:
            _require_no_doubles(arrays.files)
            found: dict[str, Any] = {key: arrays[key] for key in arrays.files}
        return {key: _tensor(key, value) for key, value in found.items()}
    except Exception as error:
        # NumPy, zipfile and the unpackers raise whatever a damaged file provokes, bare OSErrors too.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MalformedModel(f"{name} is no .npz file of plain arrays", why=_why_not(error), hint=_HOW) from error


def _require_no_bomb(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(_MOST_UNPACKED_BYTES, _MOST_EXPANSION * path.stat().st_size):
        raise ValueError(f"it would unpack to {unpacked:,} bytes, more than {_MOST_EXPANSION} times its size")


def _require_no_doubles(names: Sequence[str]) -> None:
    """Of two members ``x.npy``, or of ``x`` and ``x.npy``, readers take either."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two of its arrays are called {printable(twice)}")


def _why_not(error: Exception) -> str:
    """NumPy's words where they say something, and do not advise to read pickles."""
    first = next(iter(str(error).splitlines()), "")
    if "pickle" in first:
        return "it holds Python objects, which are pickles and stay unread"
    if not first or isinstance(error, TypeError | AttributeError):
        return "it holds no arrays by name"
    return printable(first, _MOST_WHY)


def _tensor(name: str, value: Any) -> Tensor:
    """A NumPy array as a tensor; members of a zip file that are no arrays come as bytes."""
    array = np.asarray(value, order="C") if isinstance(value, np.ndarray) else None
    if array is None or array.dtype.kind not in "fiubc":
        what = "no array" if array is None else f"an array of {array.dtype}, not of numbers"
        raise ValueError(f"{printable(name)} is {what}")
    if array.dtype.char in "gG":
        raise ValueError(f"{printable(name)} is an array of {array.dtype}, which torch does not have")
    # A file from a machine of the other byte order holds the same numbers.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
