"""Reading and writing at positions that are data. Negative positions count from the back.

torch raises for a position outside; a compiled kernel cannot, and reads the nearest element instead, never foreign
memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    as_size,
    axis_of,
    dtype_of,
    fixed,
    product_of,
    rank_of,
    shape_of,
)
from flowopt.lowering.tvm.importing.slicing import bound, from_front

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


@dataclass(frozen=True, slots=True)
class _Indices:
    """Integer tensors that index some axes together, broadcast against each other.

    Attributes:
        axes: the indexed axes.
        tensors: the positions in each of them.
        first: where the axes of the positions stand in ``x[indices]``.
        depth: how many they are.
    """

    axes: list[int]
    tensors: list[Any]
    first: int
    depth: int

    def place(self, index: Sequence[Any], sizes: Sequence[Any], positions: Sequence[Any]) -> list[Any]:
        """The place in ``x`` of an index of ``x[indices]``."""
        end = self.first + self.depth
        chosen = {
            axis: _inside(tensor(*index[self.first : end]), sizes[axis])
            for axis, tensor in zip(self.axes, positions, strict=True)
        }
        rest = iter((*index[: self.first], *index[end:]))
        return [chosen[k] if k in chosen else next(rest) for k in range(len(sizes))]


def _indices(make: Maker, indices: Sequence[Any]) -> tuple[_Indices, list[Any]]:
    """The indices, and the sizes that they have together."""
    used = {axis: index for axis, index in enumerate(indices) if index is not None}
    if any(dtype_of(index) in ("bool", "uint8") for index in used.values()):
        raise Unsupported("a boolean index: how many elements it chooses depends on the data")
    axes = list(used)
    block = _broadcast_shape([shape_of(index) for index in used.values()])
    # torch puts the indexed axes where they were when they stand together, else to the front.
    is_one_block = axes == list(range(axes[0], axes[-1] + 1))
    spread = [make.broadcast(index, block) for index in used.values()]
    return _Indices(axes, spread, axes[0] if is_one_block else 0, len(block)), block


def _broadcast_shape(shapes: Sequence[Sequence[Any]]) -> list[Any]:
    depth = max(len(shape) for shape in shapes)
    aligned = [[*[as_size(1)] * (depth - len(shape)), *shape] for shape in shapes]
    return [next((s for s in sizes if fixed(s) != 1), sizes[0]) for sizes in zip(*aligned, strict=True)]


def _index(make: Maker, x: Any, indices: Sequence[Any]) -> Any:
    """``x[i, :, j]``."""
    found, _ = _indices(make, indices)
    return make.compute(
        make.out_shape,
        lambda i, s, a, *at: a(*found.place(i, s, at)),
        x,
        *found.tensors,
        sizes=shape_of(x),
        name="index",
    )


def _index_put(make: Maker, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    """``x[i, :, j] = values``, or one value under a boolean mask."""
    from tvm import relax

    is_mask = len(indices) == 1 and indices[0] is not None and dtype_of(indices[0]) == "bool"
    if is_mask and rank_of(values) == 0 and not accumulate:
        mask = indices[0]
        shown = make.reshape(mask, shape_of(mask) + [1] * (rank_of(x) - rank_of(mask)))
        value = make.cast(values, dtype_of(x))
        return make.broadcast(make.emit(relax.op.where(shown, value, x)), make.out_shape)
    found, block = _indices(make, indices)
    sizes = shape_of(x)
    rest = [size for axis, size in enumerate(sizes) if axis not in found.axes]
    shape = [*rest[: found.first], *block, *rest[found.first :]]

    def flat(index: Any, own: Any, *at: Any) -> Any:
        place = as_size(0)
        for coordinate, size in zip(found.place(index, own, at), own, strict=True):
            place = place * size + coordinate
        return place

    places = make.compute(shape, flat, *found.tensors, sizes=sizes, name="places")
    updates = make.broadcast(make.cast(values, dtype_of(x)), shape)
    lines = [make.reshape(t, [product_of(shape_of(t))]) for t in (x, places, updates)]
    written = make.emit(relax.op.scatter_elements(*lines, 0, "add" if accumulate else "update"))
    return make.reshape(written, sizes)


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


def _select_scatter(make: Maker, x: Any, source: Any, dim: int, index: Value) -> Any:
    from tvm import tirx

    axis = axis_of(dim, rank_of(x))
    at = from_front(index, shape_of(x)[axis])

    def element(i: Any, own: Any, a: Any, b: Any) -> Any:
        return tirx.if_then_else(i[axis] == own[0], b(*i[:axis], *i[axis + 1 :]), a(*i))

    return make.compute(shape_of(x), element, x, source, sizes=[at], name="select_scatter")


def _slice_scatter(
    make: Maker, x: Any, source: Any, dim: int = 0, start: Value = None, end: Value = None, step: int = 1
) -> Any:
    from tvm import tirx

    axis = axis_of(dim, rank_of(x))
    begin = bound(0 if start is None else start, shape_of(x)[axis])

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
