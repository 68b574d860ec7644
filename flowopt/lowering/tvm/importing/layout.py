"""Reshapes, permutations, and parts of tensors put together: what moves elements and computes none."""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    axes_of,
    axis_of,
    fixed,
    rank_of,
    shape_of,
)

Converter = Callable[..., Any]


def _reshaped(make: Maker, x: Any, *ignored: Any) -> Any:
    """View, squeeze, flatten and their like: the recorded shape says it all."""
    return make.reshape(x, make.out_shape)


def _permute(make: Maker, x: Any, dims: Sequence[int]) -> Any:
    return make.permute(x, [axis_of(d, rank_of(x)) for d in dims])


def _transpose(make: Maker, x: Any, one: int, other: int) -> Any:
    axes = list(range(rank_of(x)))
    if axes:
        axes[one], axes[other] = axes[other], axes[one]
    return make.permute(x, axes)


def _t(make: Maker, x: Any) -> Any:
    return make.permute(x, list(range(rank_of(x)))[::-1])


def _movedim(make: Maker, x: Any, source: Any, destination: Any) -> Any:
    rank = rank_of(x)
    pairs = zip(
        *([axis_of(a, rank) for a in ([s] if isinstance(s, int) else s)] for s in (source, destination)), strict=True
    )
    placed = {to: of for of, to in pairs}
    rest = iter(a for a in range(rank) if a not in placed.values())
    return make.permute(x, [placed[a] if a in placed else next(rest) for a in range(rank)])


def _expand(make: Maker, x: Any, *ignored: Any) -> Any:
    return make.broadcast(x, make.out_shape)


def _select(make: Maker, x: Any, dim: int, index: Value) -> Any:
    axis = axis_of(dim, rank_of(x))
    at = index + shape_of(x)[axis] if isinstance(index, int) and index < 0 else index
    return make.compute(
        make.out_shape, lambda i, s, a: a(*i[:axis], s[0], *i[axis:]), x, sizes=[_size(at)], name="select"
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
            return _size(min(max(index + known if index < 0 else index, 0), known))
        if index < 0:
            return tirx.max(size + index, tirx.IntImm("int64", 0))
        return _size(index)
    return index


def _size(value: Any) -> Any:
    from tvm import tirx

    return tirx.IntImm("int64", value) if isinstance(value, int) else value


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
    begin, parts = _size(0), []
    for recorded in make.recorded:
        length = make.size(recorded.shape[axis])
        parts.append(part(make, x, axis, begin, length))
        begin = begin + length
    return tuple(parts)


def _unbind(make: Maker, x: Any, dim: int = 0) -> tuple[Any, ...]:
    axis = axis_of(dim, rank_of(x))
    shape = shape_of(x)
    rest = shape[:axis] + shape[axis + 1 :]
    return tuple(make.reshape(part(make, x, axis, _size(k), _size(1)), rest) for k in range(len(make.recorded)))


def _cat(make: Maker, tensors: Sequence[Any], dim: int = 0) -> Any:
    from tvm import relax

    # torch skips what is empty and one-dimensional, whatever the rank of the others.
    rank = len(make.out_shape)
    used = [t for t in tensors if not (rank != 1 and rank_of(t) == 1 and fixed(shape_of(t)[0]) == 0)]
    parts = [make.cast(t, make.out_dtype) for t in used]
    return parts[0] if len(parts) == 1 else make.emit(relax.op.concat(parts, axis_of(dim, rank)))


def _stack(make: Maker, tensors: Sequence[Any], dim: int = 0) -> Any:
    from tvm import relax

    axis = axis_of(dim, len(make.out_shape))
    parts = [make.emit(relax.op.expand_dims(make.cast(t, make.out_dtype), axis)) for t in tensors]
    return parts[0] if len(parts) == 1 else make.emit(relax.op.concat(parts, axis))


def _repeat(make: Maker, x: Any, repeats: Sequence[Value]) -> Any:
    from tvm import tirx

    shape = [_size(1)] * (len(repeats) - rank_of(x)) + shape_of(x)
    source = make.reshape(x, shape)
    if all(fixed(size) == 1 or (isinstance(n, int) and n == 1) for size, n in zip(shape, repeats, strict=True)):
        return make.broadcast(source, make.out_shape)

    def element(index: Any, own: Any, a: Any) -> Any:
        return a(*(_size(0) if fixed(s) == 1 else tirx.floormod(i, s) for i, s in zip(index, own, strict=True)))

    return make.compute(make.out_shape, element, source, sizes=shape, name="repeat")


def _repeat_interleave(make: Maker, x: Any, repeats: Value, dim: int | None = None, *ignored: Any) -> Any:
    from tvm import tirx

    if dim is None:
        x = make.reshape(x, [_product(shape_of(x))])
    axis = axis_of(dim or 0, rank_of(x))
    return make.compute(
        make.out_shape,
        lambda i, s, a: a(*i[:axis], tirx.floordiv(i[axis], s[0]), *i[axis + 1 :]),
        x,
        sizes=[_size(repeats)],
        name="repeat_interleave",
    )


def _product(sizes: Sequence[Any]) -> Any:
    total = _size(1)
    for size in sizes:
        total = total * size
    return total


def _roll(make: Maker, x: Any, shifts: Any, dims: Any = ()) -> Any:
    from tvm import tirx

    if not dims:
        flat = make.reshape(x, [_product(shape_of(x))])
        return make.reshape(_rolled(make, tirx, flat, {0: shifts[0]}), make.out_shape)
    return _rolled(make, tirx, x, {axis_of(d, rank_of(x)): s for s, d in zip(shifts, dims, strict=True)})


def _rolled(make: Maker, tirx: Any, x: Any, by: dict[int, Value]) -> Any:
    shape = shape_of(x)
    axes = list(by)

    def element(index: Any, own: Any, a: Any) -> Any:
        moved = list(index)
        for k, axis in enumerate(axes):
            moved[axis] = tirx.floormod(index[axis] - own[2 * k], own[2 * k + 1])
        return a(*moved)

    sizes = [s for axis in axes for s in (_size(by[axis]), shape[axis])]
    return make.compute(shape, element, x, sizes=sizes, name="roll")


def _flip(make: Maker, x: Any, dims: Sequence[int]) -> Any:
    axes = axes_of(dims, rank_of(x)) if dims else []
    shape = shape_of(x)
    return make.compute(
        shape,
        lambda i, s, a: a(*(s[k] - 1 - v if k in axes else v for k, v in enumerate(i))),
        x,
        sizes=shape,
        name="flip",
    )


def _triangle(is_lower: bool) -> Converter:
    def triangle(make: Maker, x: Any, diagonal: Value = 0) -> Any:
        from tvm import tirx

        def element(index: Any, own: Any, a: Any) -> Any:
            row, column = index[-2], index[-1]
            kept = column - row <= own[0] if is_lower else column - row >= own[0]
            return tirx.Select(kept, a(*index), tirx.const(0, a.dtype))

        return make.compute(shape_of(x), element, x, sizes=[_size(diagonal)], name="triangle")

    return triangle


def _diagonal(make: Maker, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    one, other = axis_of(dim1, rank_of(x)), axis_of(dim2, rank_of(x))

    def element(index: Any, _: Any, a: Any) -> Any:
        place = {one: index[-1] + max(-offset, 0), other: index[-1] + max(offset, 0)}
        rest = iter(index[:-1])
        return a(*(place[k] if k in place else next(rest) for k in range(rank_of(x))))

    return make.compute(make.out_shape, element, x, name="diagonal")


def _pad(make: Maker, x: Any, pad: Sequence[Value], mode: str = "constant", value: float | None = None) -> Any:
    return padded(make, x, pad, mode, value)


def _constant_pad(make: Maker, x: Any, pad: Sequence[Value], value: float = 0) -> Any:
    return padded(make, x, pad, "constant", value)


def _padded_by(mode: str) -> Converter:
    return lambda make, x, pad: padded(make, x, pad, mode, None)


def padded(make: Maker, x: Any, pad: Sequence[Value], mode: str, value: float | None) -> Any:
    """``pad`` as torch has it: pairs of before and after, the last axis first; negative ones crop."""
    from tvm import tirx

    shape, rank = shape_of(x), rank_of(x)
    before = {rank - 1 - k: pad[2 * k] for k in range(len(pad) // 2)}
    axes = [a for a in before if not (pad[2 * (rank - 1 - a)] == 0 and pad[2 * (rank - 1 - a) + 1] == 0)]
    if not axes:
        return x
    out = list(shape)
    for axis in axes:
        k = 2 * (rank - 1 - axis)
        out[axis] = shape[axis] + _size(pad[k]) + _size(pad[k + 1])
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise Unsupported(f"padding by {mode!r}")

    def element(index: Any, own: Any, a: Any) -> Any:
        place, inside = list(index), []
        for k, axis in enumerate(axes):
            size = own[2 * k + 1]
            at = index[axis] - own[2 * k]
            if mode == "constant":
                inside += [at >= 0, at < size]
            elif mode == "replicate":
                at = tirx.max(tirx.min(at, size - 1), _size(0))
            elif mode == "circular":
                at = tirx.floormod(at, size)
            else:
                at = size - 1 - tirx.abs(size - 1 - tirx.abs(at))
            place[axis] = at
        if not inside:
            return a(*place)
        # if_then_else, unlike Select, does not read outside.
        return tirx.if_then_else(tirx.all(*inside), a(*place), tirx.const(value or 0, a.dtype))

    sizes = [s for axis in axes for s in (_size(before[axis]), shape[axis])]
    return make.compute(out, element, x, sizes=sizes, name="pad")


def _pixel_shuffle(make: Maker, x: Any, factor: int) -> Any:
    *lead, channels, height, width = shape_of(x)
    rank = len(lead)
    split = make.reshape(x, [*lead, channels // (factor * factor), factor, factor, height, width])
    axes = [*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2]
    return make.reshape(make.permute(split, axes), make.out_shape)


def _pixel_unshuffle(make: Maker, x: Any, factor: int) -> Any:
    *lead, channels, height, width = shape_of(x)
    rank = len(lead)
    split = make.reshape(x, [*lead, channels, height // factor, factor, width // factor, factor])
    axes = [*range(rank), rank, rank + 2, rank + 4, rank + 1, rank + 3]
    return make.reshape(make.permute(split, axes), make.out_shape)


_RESHAPES = (
    "aten.reshape.default aten.view.default aten._unsafe_view.default aten.flatten.using_ints aten.unflatten.int "
    "aten.squeeze.default aten.squeeze.dim aten.squeeze.dims aten.unsqueeze.default aten.view_as.default "
    "aten._reshape_copy.default"
).split()

LAYOUT: dict[str, Converter] = {
    **dict.fromkeys(_RESHAPES, _reshaped),
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.t.default": _t,
    "aten.numpy_T.default": _t,
    **dict.fromkeys(("aten.movedim.int", "aten.movedim.intlist"), _movedim),
    **dict.fromkeys(("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"), _expand),
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": lambda make, x, dim, start, length: _slice(make, x, dim, start),
    **dict.fromkeys(("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"), _split),
    "aten.unbind.int": _unbind,
    **dict.fromkeys(("aten.cat.default", "aten.concat.default"), _cat),
    "aten.stack.default": _stack,
    "aten.repeat.default": _repeat,
    "aten.tile.default": lambda make, x, dims: _repeat(make, x, [1] * (rank_of(x) - len(dims)) + list(dims)),
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.roll.default": _roll,
    "aten.flip.default": _flip,
    "aten.tril.default": _triangle(is_lower=True),
    "aten.triu.default": _triangle(is_lower=False),
    "aten.diagonal.default": _diagonal,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _constant_pad,
    **{f"aten.reflection_pad{n}d.default": _padded_by("reflect") for n in (1, 2, 3)},
    **{f"aten.replication_pad{n}d.default": _padded_by("replicate") for n in (1, 2, 3)},
    "aten.pixel_shuffle.default": _pixel_shuffle,
    "aten.pixel_unshuffle.default": _pixel_unshuffle,
}
