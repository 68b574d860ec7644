"""Reading and writing at positions that are data. Negative positions count from the back.

torch raises for a position outside; a compiled kernel cannot, and reads the nearest element instead, never foreign
memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    axis_of,
    dtype_of,
    rank_of,
    shape_of,
)

Converter = Callable[..., Any]


def _embedding(make: Maker, weight: Any, indices: Any, *ignored: Any) -> Any:
    from tvm import relax

    return make.emit(relax.op.take(weight, indices, axis=0, mode="clip"))


def _inside(position: Any, size: Any) -> Any:
    from tvm import tirx

    at = tirx.Cast("int64", position)
    at = tirx.Select(at < 0, at + size, at)
    return tirx.max(tirx.min(at, size - 1), tirx.IntImm("int64", 0))


def _gather(make: Maker, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    if rank_of(x) == 0:
        return x
    axis = axis_of(dim, rank_of(x))
    return make.compute(
        make.out_shape,
        lambda i, s, a, at: a(*i[:axis], _inside(at(*i), s[0]), *i[axis + 1 :]),
        x,
        index,
        sizes=[shape_of(x)[axis]],
        name="gather",
    )


def _index_select(make: Maker, x: Any, dim: int, index: Any) -> Any:
    axis = axis_of(dim, rank_of(x))
    flat = index if rank_of(index) else make.reshape(index, [1])
    return make.compute(
        make.out_shape,
        lambda i, s, a, at: a(*i[:axis], _inside(at(i[axis]), s[0]), *i[axis + 1 :]),
        x,
        flat,
        sizes=[shape_of(x)[axis]],
        name="index_select",
    )


def _index(make: Maker, x: Any, indices: Sequence[Any]) -> Any:
    """``x[i, :, j]`` with integer tensors that broadcast against each other."""
    used = {axis: index for axis, index in enumerate(indices) if index is not None}
    if any(dtype_of(index) in ("bool", "uint8") for index in used.values()):
        raise Unsupported("a boolean index: how many elements it chooses depends on the data")
    axes = list(used)
    shape = make.out_shape
    depth = max(rank_of(index) for index in used.values())
    is_one_block = axes == list(range(axes[0], axes[-1] + 1))
    # torch puts the indexed axes where they were when they stand together, else to the front.
    first = axes[0] if is_one_block else 0
    spread = [make.broadcast(index, shape[first : first + depth]) for index in used.values()]

    def element(i: Any, own: Any, a: Any, *at: Any) -> Any:
        chosen = {
            axis: _inside(index(*i[first : first + depth]), own[axis]) for axis, index in zip(axes, at, strict=True)
        }
        rest = iter((*i[:first], *i[first + depth :]))
        return a(*(chosen[k] if k in chosen else next(rest) for k in range(rank_of(x))))

    return make.compute(shape, element, x, *spread, sizes=shape_of(x), name="index")


def _index_put(make: Maker, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    """One index of rows, or a boolean mask with one value."""
    from tvm import relax

    is_mask = len(indices) == 1 and indices[0] is not None and dtype_of(indices[0]) == "bool"
    if is_mask and rank_of(values) == 0 and not accumulate:
        mask = indices[0]
        shown = make.reshape(mask, shape_of(mask) + [1] * (rank_of(x) - rank_of(mask)))
        value = make.cast(values, dtype_of(x))
        return make.broadcast(make.emit(relax.op.where(shown, value, x)), make.out_shape)
    if len(indices) != 1 or indices[0] is None or rank_of(indices[0]) != 1 or is_mask:
        raise Unsupported("writing at anything but one index of rows")
    rows = shape_of(indices[0])[0]
    shape = [rows, *shape_of(x)[1:]]
    spread = make.broadcast(make.cast(values, dtype_of(x)), shape)
    places = make.compute(
        shape, lambda i, s, at: _inside(at(i[0]), s[0]), indices[0], sizes=shape_of(x)[:1], name="rows"
    )
    return make.emit(relax.op.scatter_elements(x, places, spread, 0, "add" if accumulate else "update"))


def _scatter(reduction: str) -> Converter:
    def scatter(make: Maker, x: Any, dim: int, index: Any, source: Value) -> Any:
        from tvm import relax

        axis = axis_of(dim, rank_of(x))
        shape = shape_of(index)
        updates = make.as_tensor(source, dtype_of(x))
        if rank_of(updates) == 0:
            updates = make.broadcast(updates, shape)
        updates = make.compute(shape, lambda i, _, a: a(*i), updates, name="updates")
        places = make.compute(
            shape, lambda i, s, at: _inside(at(*i), s[0]), index, sizes=[shape_of(x)[axis]], name="places"
        )
        return make.emit(relax.op.scatter_elements(x, places, updates, axis, reduction))

    return scatter


def _select_scatter(make: Maker, x: Any, source: Any, dim: int, index: int) -> Any:
    from tvm import tirx

    axis = axis_of(dim, rank_of(x))
    size = shape_of(x)[axis]
    at = size + index if index < 0 else tirx.IntImm("int64", index)

    def element(i: Any, own: Any, a: Any, b: Any) -> Any:
        return tirx.if_then_else(i[axis] == own[0], b(*i[:axis], *i[axis + 1 :]), a(*i))

    return make.compute(shape_of(x), element, x, source, sizes=[at], name="select_scatter")


def _slice_scatter(
    make: Maker, x: Any, source: Any, dim: int = 0, start: Value = None, end: Value = None, step: int = 1
) -> Any:
    from tvm import tirx

    axis = axis_of(dim, rank_of(x))
    size = shape_of(x)[axis]
    begin = 0 if start is None else start
    if isinstance(begin, int):
        begin = tirx.max(size + begin, 0) if begin < 0 else tirx.IntImm("int64", begin)

    def element(i: Any, own: Any, a: Any, b: Any) -> Any:
        at = i[axis] - own[0]
        inside = tirx.all(at >= 0, tirx.floormod(at, step) == 0, tirx.floordiv(at, step) < own[1])
        return tirx.if_then_else(inside, b(*i[:axis], tirx.floordiv(at, step), *i[axis + 1 :]), a(*i))

    return make.compute(shape_of(x), element, x, source, sizes=[begin, shape_of(source)[axis]], name="slice_scatter")


INDEXING: dict[str, Converter] = {
    "aten.embedding.default": _embedding,
    "aten.gather.default": _gather,
    "aten.index_select.default": _index_select,
    "aten.index.Tensor": _index,
    **dict.fromkeys(("aten.index_put.default", "aten._unsafe_index_put.default"), _index_put),
    **dict.fromkeys(("aten.scatter.src", "aten.scatter.value"), _scatter("update")),
    "aten.scatter_add.default": _scatter("add"),
    "aten.select_scatter.default": _select_scatter,
    "aten.slice_scatter.default": _slice_scatter,
    "aten._unsafe_index.Tensor": _index,
}
