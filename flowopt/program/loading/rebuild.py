"""From a checked archive to an ``ExportedProgram`` whose weights stay mapped in the file."""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from flowopt.errors import Untrusted
from flowopt.formats.pt2.archive import CleanArchive
from flowopt.formats.pt2.tensors import StoredTensor


def rebuilt_program(archive: CleanArchive, file: BinaryIO) -> Any:
    """An ``ExportedProgram`` made from checked values; torch never sees the file.

    Args:
        archive: what ``read_archive`` has checked.
        file: the file that was checked, still open. It is mapped copy-on-write: pages are read when they are used,
            and nothing can be written to it.

    Raises:
        Untrusted: an operator that is none of the dispatcher's.
        MalformedModel: parts that contradict each other.
    """
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    _require_dispatched(_targets(archive.document["graph_module"]["graph"]))
    document = dict(archive.document)
    # Guards are checked for what they are; sizes are checked by flowopt itself, at every call.
    document["guards_code"] = []
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    described = _dict_to_dataclass(schema.ExportedProgram, document)
    return ExportedProgramDeserializer().deserialize(
        described, mapped_tensors(archive.weights, mapped), mapped_tensors(archive.constants, mapped)
    )


def mapped_tensors(stored: Iterable[StoredTensor], mapped: mmap.mmap) -> dict[str, Tensor]:
    """Tensors by name, on the mapped file; those of one record share memory, as they did in the model."""
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    records: dict[tuple[int, int, int], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for one in stored:
        dtype: torch.dtype = _SERIALIZE_TO_TORCH_DTYPE[one.dtype]
        key = (*one.record, one.dtype)
        if key not in records:
            records[key] = _record(mapped, *one.record, dtype)
        tensor = torch.as_strided(records[key], one.shape, one.strides, one.first)
        tensors[one.name] = nn.Parameter(tensor, requires_grad=False) if one.is_parameter else tensor
    return tensors


def _record(mapped: mmap.mmap, start: int, length: int, dtype: torch.dtype) -> Tensor:
    if length < dtype.itemsize:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(mapped, dtype=torch.uint8, offset=start, count=length - length % dtype.itemsize)
    # torch aligns what it writes; other writers may not, and kernels read whole vectors.
    return (raw if start % dtype.itemsize == 0 else raw.clone()).view(dtype)


def _targets(graph: Mapping[str, Any]) -> Iterator[str]:
    """Names of all operators, subgraphs included."""
    pending: list[Any] = [graph]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
            yield from (value[key] for key in ("target", "as_operator") if isinstance(value.get(key), str))
        elif isinstance(value, list):
            pending.extend(value)


def _require_dispatched(targets: Iterable[str]) -> None:
    """Operators of the dispatcher; TorchScript's interpreter has more under the same names, some of which do I/O."""
    for target in {t for t in targets if t.startswith(("torch.ops.aten.", "torch.ops.prims."))}:
        _, _, namespace, name, *overload = target.split(".")
        qualified = f"{namespace}::{name}" + (f".{overload[0]}" if overload and overload[0] != "default" else "")
        if not torch._C._dispatch_has_kernel(qualified):
            raise Untrusted(
                f"the file calls {target}, which torch {torch.__version__} does not have as an operator of tensors",
                hint="export the model again with the torch that is installed here",
            )
