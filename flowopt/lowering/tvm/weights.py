"""Arrays in one file, each at an aligned offset: what an artifact's weights are. Imports no torch."""

import hashlib
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from flowopt.runtime.layout import weights_name
from flowopt.runtime.relax_metadata import StoredTensor

# A cache line, enough for every vector instruction, and what TVM asks of memory that it does not own.
ALIGNMENT = 64


def placed(entries: Iterable[tuple[str, Sequence[int], int]]) -> list[StoredTensor]:
    """Where each tensor lies, for dtypes, shapes and bytes per element in order."""
    table: list[StoredTensor] = []
    end = 0
    for dtype, shape, itemsize in entries:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        table.append(StoredTensor(offset, dtype, tuple(shape)))
        end = offset + prod(shape) * itemsize
    return table


def write_arrays(arrays: Sequence[np.ndarray], path: Path) -> tuple[list[StoredTensor], str | None]:
    """Write arrays to a file; where each lies, and the file's name in an artifact (None: it is empty)."""
    table = placed((str(a.dtype), a.shape, a.dtype.itemsize) for a in arrays)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for array, entry in zip(arrays, table, strict=True):
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for part in (bytes(entry.offset - file.tell()), raw.data):
                digest.update(part)
                file.write(part)
        size = file.tell()
    return table, weights_name(digest.hexdigest()) if size else None
