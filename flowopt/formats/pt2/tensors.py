"""Weights and constants: where in the file each tensor lies, checked against the record that holds it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.pt2.checks import Place, boolean, integer, malformed, map_of, name, optional, record
from flowopt.formats.pt2.values import TENSOR_META

# Bytes of one element, by the code of torch/_export/serde/schema.py.
_ITEM_BYTES: Final[Mapping[int, int]] = {11: 16} | {
    code: size
    for size, codes in {
        1: (1, 2, 12, 29, 30, 31, 32, 33),
        2: (3, 6, 13, 28),
        4: (4, 7, 9, 34),
        8: (5, 8, 10, 35),
    }.items()
    for code in codes
}
_PAYLOADS: Final = record(
    {
        "config": map_of(
            record(
                {"path_name": name, "is_param": boolean, "use_pickle": boolean},
                {"tensor_meta": optional(TENSOR_META)},
            )
        )
    }
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor inside the file.

    Attributes:
        name: of the parameter, buffer or constant.
        dtype: code of the schema's ``ScalarType``.
        shape, strides: in elements.
        first: index of the tensor's first element in its record.
        record: offset and length of the record in the file, in bytes; tensors that share memory share a record.
        is_parameter: a trained parameter rather than a buffer or constant.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    record: tuple[int, int]
    is_parameter: bool


def stored_tensors(config: Any, records: Mapping[str, tuple[int, int]], place: Place) -> tuple[StoredTensor, ...]:
    """The tensors that a ``*_config.json`` describes.

    Args:
        config: the parsed file.
        records: offset and length of each record that the config may name, by its name.
        place: the config's place, for messages.

    Raises:
        Untrusted: a tensor that is stored as a pickle.
        MalformedModel: sizes that the record cannot hold, or another form than torch writes.
    """
    payloads = _PAYLOADS(config, place)["config"]
    return tuple(_stored(key, payload, records, place / key) for key, payload in payloads.items())


def _stored(key: str, payload: Mapping[str, Any], records: Mapping[str, tuple[int, int]], place: Place) -> StoredTensor:
    meta = payload.get("tensor_meta")
    if payload["use_pickle"] or meta is None:
        raise Untrusted(
            f"the tensor {key!r} is stored as a pickle",
            why=f"{place}: reading a pickle can run any program on this machine",
            hint="if you trust its author; else ask for .safetensors, .onnx or a new export",
            retry=(("--trust", "code"),),
        )
    if payload["path_name"] not in records:
        raise MalformedModel(
            f"the weights of {key!r} are missing from the archive",
            why=f"{place}: it has no record {payload['path_name']!r}",
            hint="export the model again with torch.export.save",
        )
    sizes = _plain(meta["sizes"], place / "sizes")
    strides = _plain(meta["strides"], place / "strides")
    first = _plain([meta["storage_offset"]], place / "storage_offset")[0]
    extent = records[payload["path_name"]]
    _require_inside(key, sizes, strides, first, extent[1] // _ITEM_BYTES[meta["dtype"]], place)
    return StoredTensor(key, meta["dtype"], sizes, strides, first, extent, payload["is_param"])


def _plain(sizes: list[dict[str, Any]], place: Place) -> tuple[int, ...]:
    """Numbers that are known and not negative."""
    values = tuple(integer(size.get("as_int"), place) for size in sizes)
    if any(value < 0 for value in values):
        raise malformed(place, "0 or more", min(values))
    return values


def _require_inside(
    key: str, sizes: tuple[int, ...], strides: tuple[int, ...], first: int, available: int, place: Place
) -> None:
    if len(sizes) != len(strides):
        raise malformed(place, f"complete: {len(sizes)} sizes need as many strides", len(strides))
    last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    # An expanded tensor is larger than its record; so much larger than memory, it is an attack.
    is_inside = math.prod(sizes) == 0 or last < available
    if is_inside and first <= available and math.prod(sizes) <= max(available, 1) * _MOST_EXPANSION:
        return
    raise MalformedModel(
        f"the weights of {key!r} reach outside their record",
        why=f"{place}: shape {list(sizes)}, strides {list(strides)}, offset {first}, of {available:,} stored elements",
        hint="the file is damaged or was made by hand: export the model again with torch.export.save",
    )


_MOST_EXPANSION: Final = 1 << 20
