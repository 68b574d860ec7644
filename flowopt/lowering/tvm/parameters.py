"""A program's tensors in one file: how they go to the compiler's process."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from flowopt.lowering.tvm.weights import placed
from flowopt.runtime.relax_metadata import StoredTensor


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
