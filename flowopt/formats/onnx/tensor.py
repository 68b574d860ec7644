"""One tensor of an ONNX file: what its bytes claim, and whether the claims agree.

Source: onnx/onnx.proto3, messages TensorProto and SparseTensorProto (field numbers, packing of small types).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Final, Literal, NamedTuple

from flowopt.errors import MalformedModel
from flowopt.formats.limits import GIBIBYTE
from flowopt.formats.onnx.wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Data,
    Field,
    damaged,
    fields,
    packed_varints,
    require_wire,
    text,
    varint,
)

# Where a tensor stands: in the main graph, in another graph or function, in an attribute, in a sparse tensor.
Place = Literal["initializer", "inner initializer", "attribute", "sparse"]

DIMS, DATA_TYPE, SEGMENT, FLOATS, INT32S, STRINGS, INT64S, NAME, RAW = 1, 2, 3, 4, 5, 6, 7, 8, 9
DOUBLES, UINT64S, EXTERNAL_DATA, DATA_LOCATION = 10, 11, 13, 14
SPARSE_VALUES, SPARSE_INDICES, SPARSE_DIMS = 1, 2, 3
_ONCE: Final = {DATA_TYPE, NAME, RAW, DATA_LOCATION}
_FIXED: Final = {FLOATS: (FIXED32, 4), DOUBLES: (FIXED64, 8)}
_VARINTS: Final = {INT32S, INT64S, UINT64S}
_INT64: Final = 7
# ONNX Runtime makes a sparse tensor dense while it loads: a few bytes could ask for all memory.
_MOST_DENSE_BYTES: Final = 2 * GIBIBYTE
# Characters of a name in a message.
_SHOWN: Final = 100
# NumPy's limit.
_MOST_DIMS: Final = 64
_OWNER: Final = "ask whoever made the file for one that the exporter wrote unchanged"


class ElementType(NamedTuple):
    """Bits of an element, the field for typed data, and how many entries ``per`` how many elements stand there."""

    bits: int
    typed: int
    entries: int = 1
    per: int = 1


STRING: Final = 8
ELEMENT_TYPES: Final[Mapping[int, ElementType]] = {
    1: ElementType(32, FLOATS),
    **{code: ElementType(8, INT32S) for code in (2, 3, 9, 17, 18, 19, 20, 24)},
    **{code: ElementType(16, INT32S) for code in (4, 5, 10, 16)},
    6: ElementType(32, INT32S),
    7: ElementType(64, INT64S),
    STRING: ElementType(0, STRINGS),
    11: ElementType(64, DOUBLES),
    12: ElementType(32, UINT64S),
    13: ElementType(64, UINT64S),
    14: ElementType(64, FLOATS, entries=2),
    15: ElementType(128, DOUBLES, entries=2),
    **{code: ElementType(4, INT32S, per=2) for code in (21, 22, 23)},
    **{code: ElementType(2, INT32S, per=4) for code in (25, 26)},
    **{code: ElementType(6, INT32S) for code in (27, 28)},
}


@dataclass(frozen=True, slots=True)
class TensorField:
    """A tensor whose claims agree. ``external``: its key-value pairs, when the data lies in another file."""

    name: str
    place: Place
    data_type: int
    dims: tuple[int, ...]
    external: Mapping[str, str] | None

    @property
    def bytes(self) -> int:
        """Bytes of the data; 0 for strings."""
        return -(-prod(self.dims) * ELEMENT_TYPES[self.data_type].bits // 8)


@dataclass(slots=True)
class _Claims:
    name: str = ""
    data_type: int = 0
    location: int = 0
    raw: int | None = None
    dims: list[int] = field(default_factory=list)
    entries: dict[int, int] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)


def read_tensor(data: Data, start: int, end: int, place: Place) -> TensorField:
    """The tensor at ``start:end``.

    Raises:
        MalformedModel: its type is unknown, its shape negative, its data not as long as its shape says, or it says
            two things about where the data lies.
    """
    claims = _Claims()
    seen: set[int] = set()
    for one in fields(data, start, end):
        if one.number in _ONCE and one.number in seen:
            raise damaged(f"a tensor has field {one.number} twice")
        seen.add(one.number)
        _take(data, one, claims)
    return _checked(claims, place)


def read_sparse(data: Data, start: int, end: int) -> tuple[TensorField, ...]:
    """The values and the indices of the sparse tensor at ``start:end``.

    Raises:
        MalformedModel: as for ``read_tensor``, or the dense tensor would have more than 2 GiB.
    """
    parts: dict[int, TensorField] = {}
    dims: list[int] = []
    for one in fields(data, start, end):
        if one.number == SPARSE_DIMS:
            _add_sizes(data, one, dims)
        elif one.number in (SPARSE_VALUES, SPARSE_INDICES):
            require_wire(one, BYTES)
            if one.number in parts:
                raise damaged(f"a sparse tensor has field {one.number} twice")
            parts[one.number] = read_tensor(data, one.start, one.end, "sparse")
    if len(parts) != 2:
        raise _refused("a sparse tensor lacks its values or its indices")
    values, indices = parts[SPARSE_VALUES], parts[SPARSE_INDICES]
    if indices.data_type != _INT64 or len(values.dims) != 1 or indices.dims[:1] != values.dims:
        raise _refused(f"the indices of sparse tensor {values.name[:_SHOWN]!r} do not belong to its values")
    _require_shape(values.name[:_SHOWN], dims)
    if prod(dims) * ELEMENT_TYPES[values.data_type].bits > 8 * _MOST_DENSE_BYTES:
        raise _refused(f"sparse tensor {values.name[:_SHOWN]!r} has the shape {_shown(dims)}: dense, it exceeds 2 GiB")
    return values, indices


def _take(data: Data, one: Field, claims: _Claims) -> None:
    number = one.number
    if number == DIMS:
        _add_sizes(data, one, claims.dims)
    elif number in (DATA_TYPE, DATA_LOCATION):
        require_wire(one, VARINT)
        setattr(claims, "data_type" if number == DATA_TYPE else "location", one.value)
    elif number == NAME:
        claims.name = text(data, one)
    elif number == RAW:
        require_wire(one, BYTES)
        claims.raw = one.end - one.start
    elif number == EXTERNAL_DATA:
        key, value = _entry(data, one)
        if key in claims.external:
            raise _refused(
                f"a tensor has the external data key {key[:_SHOWN]!r} twice: readers differ in which they take"
            )
        claims.external[key] = value
    elif number == SEGMENT:
        raise _refused("a tensor is one segment of several, which no reader supports")
    elif number == STRINGS or number in _VARINTS or number in _FIXED:
        claims.entries[number] = claims.entries.get(number, 0) + _entries(data, one)


def _entries(data: Data, one: Field) -> int:
    """Entries of typed data in one field, packed or not."""
    if one.number == STRINGS:
        require_wire(one, BYTES)
        return 1
    wire, size = _FIXED.get(one.number, (VARINT, 0))
    if one.wire != BYTES:
        require_wire(one, wire)
        return 1
    if not size:
        return packed_varints(data, one)
    if (one.end - one.start) % size:
        raise damaged(f"field {one.number} of a tensor is cut off")
    return (one.end - one.start) // size


def _add_sizes(data: Data, one: Field, dims: list[int]) -> None:
    """Add what a repeated int64 field holds, packed or not; what int64 reads as negative stays above 2^63."""
    if one.wire != BYTES:
        require_wire(one, VARINT)
        dims.append(one.value)
    position = one.start
    while one.wire == BYTES and position < one.end and len(dims) <= _MOST_DIMS:
        size, position = varint(data, position, one.end)
        dims.append(size)
    if len(dims) > _MOST_DIMS:
        raise _refused(f"a tensor has more than {_MOST_DIMS} dimensions")


def _entry(data: Data, one: Field) -> tuple[str, str]:
    require_wire(one, BYTES)
    found: dict[int, str] = {}
    for part in fields(data, one.start, one.end):
        if part.number in found:
            raise damaged("a key-value pair has two keys or two values")
        if part.number in (1, 2):
            found[part.number] = text(data, part)
    return found.get(1, ""), found.get(2, "")


def _checked(claims: _Claims, place: Place) -> TensorField:
    name, kind = claims.name[:_SHOWN], ELEMENT_TYPES.get(claims.data_type)
    if kind is None:
        raise _refused(f"tensor {name!r} has the unknown data type {claims.data_type}")
    _require_shape(name, claims.dims)
    tensor = TensorField(claims.name, place, claims.data_type, tuple(claims.dims), claims.external or None)
    present = sorted(number for number, entries in claims.entries.items() if entries)
    if claims.location not in (0, 1) or (claims.location == 1) != bool(claims.external):
        raise _refused(
            f"tensor {name!r} has data_location {claims.location} and {len(claims.external)} keys of external data",
            why="readers differ in which of the two they follow",
        )
    if claims.external:
        if present or claims.raw:
            raise _refused(f"tensor {name!r} has data of its own and external data: readers differ in which they take")
        if claims.data_type == STRING:
            raise _refused(f"tensor {name!r} keeps strings in an external file, which ONNX forbids")
        return tensor
    elements = prod(claims.dims)
    what = f"tensor {name!r} of shape {_shown(claims.dims)}"
    if claims.raw is not None:
        if present or claims.raw != tensor.bytes or (claims.data_type == STRING and elements):
            raise _refused(f"{what} needs {tensor.bytes:,} bytes, has {claims.raw:,} and the typed fields {present}")
        return tensor
    wanted = -(-elements * kind.entries // kind.per)
    found = {number: claims.entries[number] for number in present}
    if found != ({kind.typed: wanted} if wanted else {}):
        raise _refused(f"{what} needs {wanted:,} entries, has {found or 'none'}")
    return tensor


def _require_shape(name: str, dims: list[int]) -> None:
    if any(size >> 63 for size in dims):
        raise _refused(f"tensor {name!r} has a negative size")


def _shown(dims: list[int]) -> str:
    return str(dims if len(dims) < 10 else [*dims[:8], "..."])


def _refused(message: str, why: str = "") -> MalformedModel:
    return MalformedModel(message, why=why, hint=_OWNER)
