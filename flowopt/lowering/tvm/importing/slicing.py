"""Parts of tensors: slices, selections and splits."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Value,
    as_size,
    axis_of,
    fixed,
    rank_of,
    shape_of,
)

Converter = Callable[..., Any]


def _select(make: Maker, x: Any, dim: int, index: Value) -> Any:
    axis = axis_of(dim, rank_of(x))
    at = from_front(index, shape_of(x)[axis])
    return make.compute(make.out_shape, lambda i, s, a: a(*i[:axis], s[0], *i[axis:]), x, sizes=[at], name="select")


def _slice(make: Maker, x: Any, dim: int = 0, start: Value = None, end: Value = None, step: int = 1) -> Any:
    axis = axis_of(dim, rank_of(x))
    begin = bound(0 if start is None else start, shape_of(x)[axis])
    # How many elements follow is in the recorded shape, ends that are negative, huge or free included.
    return part(make, x, axis, begin, make.out_shape[axis], step)


def bound(index: Value, size: Any) -> Any:
    """The start of a slice as torch reads it: negative ones count from the back, and none is outside."""
    from tvm import tirx

    at, known = from_front(index, size), fixed(size)
    first = fixed(at)
    if first is not None and known is not None:
        return as_size(min(max(first, 0), known))
    # Behind the end nothing follows, by the recorded shape.
    if _is_positive(index):
        return at
    return tirx.max(tirx.min(at, size), as_size(0))


def from_front(index: Value, size: Any) -> Any:
    """A position on an axis, where negative ones count from the back."""
    from tvm import tirx

    if _is_positive(index):
        return as_size(index)
    return as_size(index + size) if fixed(index) is not None else tirx.Select(index < 0, index + size, index)


def _is_positive(index: Value) -> bool:
    """Whether an index is certain not to be negative: a number that is not, or a size itself."""
    from tvm import tirx

    known = fixed(index)
    return isinstance(index, tirx.Var) if known is None else known >= 0


def part(make: Maker, x: Any, axis: int, begin: Any, length: Any, step: int = 1) -> Any:
    """``length`` elements of an axis from ``begin`` on."""
    from tvm import relax

    shape = shape_of(x)
    first, count, whole = fixed(begin), fixed(length), fixed(shape[axis])
    if first == 0 and step == 1 and count is not None and count == whole:
        return x
    if first is not None and count is not None and whole is not None:
        last = first + (count - 1) * step + 1 if count else first
        return make.emit(relax.op.strided_slice(x, [axis], [first], [last], [step], assume_inbound=True))
    shape[axis] = length
    # relax.strided_slice leaves lengths of free axes to the runtime, and everything behind it without a shape.
    return make.compute(
        shape,
        lambda i, s, a: a(*i[:axis], s[0] + i[axis] * step, *i[axis + 1 :]),
        x,
        sizes=[begin],
        name="slice",
    )


def _split(make: Maker, x: Any, sizes: Any, dim: int = 0) -> tuple[Any, ...]:
    """``split``, ``split_with_sizes``, ``chunk``: each part a slice, so that it fuses with its reader."""
    axis = axis_of(dim, rank_of(x))
    begin, parts = as_size(0), []
    for recorded in make.recorded:
        length = make.size(recorded.shape[axis])
        parts.append(part(make, x, axis, begin, length))
        begin = begin + length
    return tuple(parts)


def _unbind(make: Maker, x: Any, dim: int = 0) -> tuple[Any, ...]:
    axis = axis_of(dim, rank_of(x))
    shape = shape_of(x)
    rest = shape[:axis] + shape[axis + 1 :]
    return tuple(make.reshape(part(make, x, axis, as_size(k), as_size(1)), rest) for k in range(len(make.recorded)))


SLICING: dict[str, Converter] = {
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": lambda make, x, dim, start, length: _slice(make, x, dim, start),
    **dict.fromkeys(("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"), _split),
    "aten.unbind.int": _unbind,
}
