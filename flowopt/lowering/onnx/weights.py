"""Move the initializers of an ONNX model to one external, content-addressed file, tensor by tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowopt.lowering.staging import Staging

# Smaller tensors stay in the model file, where shape inference can read them.
EXTERNAL_BYTES = 1024
# A cache line, and enough for every vector instruction.
ALIGNMENT = 64
# What is copied at a time of a tensor that does not lie in one piece.
PIECE_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class _Place:
    tensor: Any
    offset: int
    length: int


def move_weights(model: Any, defaults: Mapping[str, Tensor], staging: Staging) -> tuple[str, ...]:
    """Write all larger initializers and point the model at them.

    Args:
        model: an ``onnx_ir.Model``.
        defaults: input name to the value that it takes when the caller gives none.
        staging: where the file goes.

    Returns:
        Names of the files written: one, or none.
    """
    import onnx_ir
    from onnx_ir.tensor_adapters import TorchTensor

    graph = model.graph
    for value in graph.inputs:
        if value.name in defaults:
            value.const_value = TorchTensor(defaults[value.name].detach(), name=value.name)
            graph.register_initializer(value)
    _sort_initializers(graph)
    places: dict[object, _Place] = {}
    moved: list[tuple[Any, _Place]] = []
    end = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor.nbytes < EXTERNAL_BYTES:
            continue
        place = places.get(same_memory(tensor))
        if place is None:
            place = _Place(tensor, -(-end // ALIGNMENT) * ALIGNMENT, tensor.nbytes)
            places[same_memory(tensor)] = place
            end = place.offset + place.length
        moved.append((value, place))
    names = staging.weights(_chunks(list(places.values())))
    for value, place in moved:
        value.const_value = onnx_ir.ExternalTensor(
            names[0],
            place.offset,
            place.length,
            value.const_value.dtype,
            shape=onnx_ir.Shape(value.const_value.shape),
            name=value.name,
        )
    return names


def same_memory(tensor: Any) -> object:
    """A key that is equal for tensors that are the same memory read the same way: they are stored once."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, Tensor) and raw.numel():
        return raw.data_ptr(), raw.dtype, tuple(raw.shape), raw.stride()
    return id(tensor)


def _sort_initializers(graph: Any) -> None:
    values = sorted(graph.initializers.values(), key=lambda value: str(value.name))
    graph.initializers.clear()
    for value in values:
        graph.register_initializer(value)


def _chunks(places: list[_Place]) -> Iterator[bytes | memoryview]:
    end = 0
    for place in places:
        yield bytes(place.offset - end)
        yield from _tensor_chunks(place.tensor)
        end = place.offset + place.length


def _tensor_chunks(tensor: Any) -> Iterator[bytes | memoryview]:
    raw = getattr(tensor, "raw", None)
    if not isinstance(raw, Tensor) or raw.nbytes != tensor.nbytes:
        yield tensor.tobytes()
        return
    raw = raw.detach().cpu()
    if raw.dim() == 0 or raw.is_contiguous():
        yield _memory(raw.contiguous())
        return
    rows = max(1, PIECE_BYTES * raw.shape[0] // raw.nbytes)
    for start in range(0, raw.shape[0], rows):
        yield _memory(raw[start : start + rows].contiguous())


def _memory(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data
