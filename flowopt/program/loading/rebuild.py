"""From a checked archive to an ``ExportedProgram`` whose weights stay mapped in the file."""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor, nn

from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.printable import printable
from flowopt.formats.pt2.archive import CleanArchive
from flowopt.formats.pt2.tensors import StoredTensor

_ATTRIBUTES: Final = ("parameter_name", "buffer_name", "tensor_constant_name")


def rebuilt_program(archive: CleanArchive, file: BinaryIO) -> Any:
    """An ``ExportedProgram`` made from checked values; torch never sees the file.

    Args:
        archive: what ``read_archive`` has checked.
        file: the file that was checked, still open. It is mapped copy-on-write: pages are read when they are used,
            and nothing can be written to it.

    Raises:
        Untrusted: an operator that is none of the dispatcher's.
        MalformedModel: a weight or a subgraph that is named as a part of torch's own modules, or impossible values.
    """
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    objects = list(_objects(archive.document["graph_module"]))
    _require_dispatched(objects)
    _require_own_attributes(objects)
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
    if dtype is torch.bool and bool((raw > 1).any()):
        raise MalformedModel(
            "the file stores truth values that are neither 0 nor 1",
            why="what kernels do with such a byte is undefined",
            hint="export the model again with torch.export.save",
        )
    # torch aligns what it writes; other writers may not, and kernels read whole vectors.
    return (raw if start % dtype.itemsize == 0 else raw.clone()).view(dtype)


def _objects(part: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of a part of the document, those of subgraphs included."""
    pending: list[Any] = [part]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
            yield value
        elif isinstance(value, list):
            pending.extend(value)


def _require_dispatched(objects: Iterable[Mapping[str, Any]]) -> None:
    """Operators of the dispatcher; TorchScript's interpreter has more under the same names, some of which do I/O."""
    named = {one[key] for one in objects for key in ("target", "as_operator") if isinstance(one.get(key), str)}
    for target in (t for t in named if t.startswith(("torch.ops.aten.", "torch.ops.prims."))):
        _, _, namespace, name, *overload = target.split(".")
        qualified = f"{namespace}::{name}" + (f".{overload[0]}" if overload and overload[0] != "default" else "")
        if not torch._C._dispatch_has_kernel(qualified):
            raise Untrusted(
                f"the file calls {printable(target)}, an operator of tensors that torch {torch.__version__} lacks",
                hint="export the model again with the torch that is installed here",
            )


def _require_own_attributes(objects: Iterable[Mapping[str, Any]]) -> None:
    """Parameters, buffers and subgraphs must not be named as something that torch's modules have already.

    A graph reads them as attributes: the name ``to_folder`` would be a method that writes files, and operators with
    a body would call it.
    """
    inner = set(dir(nn.Module()))
    graph_module = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    # Its plain attributes, such as graph, may well be the name of a user's submodule; torch lifts those out of the way.
    first_too = inner | {name for name in dir(graph_module) if callable(getattr(graph_module, name, None))}
    for path in _attributes(objects):
        first, *rest = path.split(".")
        if first in first_too or not inner.isdisjoint(rest):
            raise MalformedModel(
                f"the file has a parameter, a buffer or a subgraph named {path!r}",
                why="a module of torch has an attribute of that name itself",
                hint="rename it in the model, and export it again",
            )


def _attributes(objects: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for one in objects:
        yield from (one[key] for key in _ATTRIBUTES if isinstance(one.get(key), str))
        subgraph = one.get("as_graph")
        if isinstance(subgraph, dict) and isinstance(subgraph.get("name"), str):
            yield subgraph["name"]
