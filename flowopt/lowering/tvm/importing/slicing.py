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
    at = index + shape_of(x)[axis] if isinstance(index, int) and index < 0 else index
    return make.compute(
        make.out_shape, lambda i, s, a: a(*i[:axis], s[0], *i[axis:]), x, sizes=[as_size(at)], name="select"
    )


def _slice(make: Maker, x: Any, dim: int = 0, start: Value = None, end: Value = None, step: int = 1) -> Any:
    axis = axis_of(dim, rank_of(x))
    begin = _bound(0 if start is None else start, shape_of(x)[axis])
    # How many elements follow is in the recorded shape, ends that are negative, huge or free included.
    return part(make, x, axis, begin, make.out_shape[axis], step)


def _bound(index: Value, size: Any) -> Any:
    """The start of a slice as torch reads it: negative ones count from the back, and none is outside."""
    from tvm import tirx

    if isinstance(index, int):
        known = fixed(size)
        if known is not None:
            return as_size(min(max(index + known if index < 0 else index, 0), known))
        if index < 0:
            return tirx.max(size + index, tirx.IntImm("int64", 0))
        return as_size(index)
    return index


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
