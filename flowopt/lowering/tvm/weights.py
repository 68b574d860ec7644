"""Tensors in one file, each at an aligned offset: how they go to the compiler's process, and into an artifact."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopt.runtime.layout import weights_name
from flowopt.runtime.library_metadata import StoredTensor

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


def table_of(tensors: Iterable[Tensor]) -> list[StoredTensor]:
    """Where each of these tensors lies."""
    return placed((str(t.dtype).removeprefix("torch."), tuple(t.shape), t.element_size()) for t in tensors)


def chunks_of(tensors: Iterable[Tensor], table: Sequence[StoredTensor]) -> Iterator[bytes | memoryview]:
    """The file's content, tensor by tensor."""
    end = 0
    for tensor, entry in zip(tensors, table, strict=True):
        yield bytes(entry.offset - end)
        whole = tensor.detach().cpu().contiguous()
        yield whole.reshape(-1).view(torch.uint8).numpy().data
        end = entry.offset + whole.numel() * whole.element_size()


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
