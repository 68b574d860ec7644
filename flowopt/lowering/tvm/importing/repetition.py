"""Elements read more than once or in another order: repeats, rolls and flips."""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Value,
    as_size,
    axes_of,
    axis_of,
    fixed,
    product_of,
    rank_of,
    shape_of,
)

Converter = Callable[..., Any]


def _repeat(make: Maker, x: Any, repeats: Sequence[Value]) -> Any:
    from tvm import tirx

    shape = [as_size(1)] * (len(repeats) - rank_of(x)) + shape_of(x)
    source = make.reshape(x, shape)
    if all(fixed(size) == 1 or (isinstance(n, int) and n == 1) for size, n in zip(shape, repeats, strict=True)):
        return make.broadcast(source, make.out_shape)

    def element(index: Any, own: Any, a: Any) -> Any:
        return a(*(as_size(0) if fixed(s) == 1 else tirx.floormod(i, s) for i, s in zip(index, own, strict=True)))

    return make.compute(make.out_shape, element, source, sizes=shape, name="repeat")


def _repeat_interleave(make: Maker, x: Any, repeats: Value, dim: int | None = None, *ignored: Any) -> Any:
    from tvm import tirx

    if dim is None:
        x = make.reshape(x, [product_of(shape_of(x))])
    axis = axis_of(dim or 0, rank_of(x))
    return make.compute(
        make.out_shape,
        lambda i, s, a: a(*i[:axis], tirx.floordiv(i[axis], s[0]), *i[axis + 1 :]),
        x,
        sizes=[as_size(repeats)],
        name="repeat_interleave",
    )


def _roll(make: Maker, x: Any, shifts: Any, dims: Any = ()) -> Any:
    from tvm import tirx

    if not dims:
        flat = make.reshape(x, [product_of(shape_of(x))])
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

    sizes = [s for axis in axes for s in (as_size(by[axis]), shape[axis])]
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


REPETITION: dict[str, Converter] = {
    "aten.repeat.default": _repeat,
    "aten.tile.default": lambda make, x, dims: _repeat(make, x, [1] * (rank_of(x) - len(dims)) + list(dims)),
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.roll.default": _roll,
    "aten.flip.default": _flip,
}
