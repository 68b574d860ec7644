"""Reshapes, permutations and joins: what moves elements and computes none."""

from collections.abc import Callable, Sequence
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


def _triangle(is_lower: bool) -> Converter:
    def triangle(make: Maker, x: Any, diagonal: Value = 0) -> Any:
        from tvm import tirx

        def element(index: Any, own: Any, a: Any) -> Any:
            row, column = index[-2], index[-1]
            kept = column - row <= own[0] if is_lower else column - row >= own[0]
            return tirx.Select(kept, a(*index), tirx.const(0, a.dtype))

        return make.compute(shape_of(x), element, x, sizes=[as_size(diagonal)], name="triangle")

    return triangle


def _diagonal(make: Maker, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    one, other = axis_of(dim1, rank_of(x)), axis_of(dim2, rank_of(x))

    def element(index: Any, _: Any, a: Any) -> Any:
        place = {one: index[-1] + max(-offset, 0), other: index[-1] + max(offset, 0)}
        rest = iter(index[:-1])
        return a(*(place[k] if k in place else next(rest) for k in range(rank_of(x))))

    return make.compute(make.out_shape, element, x, name="diagonal")


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
    **dict.fromkeys(("aten.cat.default", "aten.concat.default"), _cat),
    "aten.stack.default": _stack,
    "aten.tril.default": _triangle(is_lower=True),
    "aten.triu.default": _triangle(is_lower=False),
    "aten.diagonal.default": _diagonal,
    "aten.pixel_shuffle.default": _pixel_shuffle,
    "aten.pixel_unshuffle.default": _pixel_unshuffle,
}
