"""Sorting, choosing the largest, running sums and histograms."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    as_size,
    axis_of,
    dtype_of,
    product_of,
    rank_of,
    shape_of,
    wide,
)

Converter = Callable[..., Any]


def _ranks(make: Maker, x: Any, axis: int, descending: bool) -> Any:
    """How many elements of its line come before each: a stable order, by counting, in which NaN is the largest.

    Relax's sort calls a routine of the runtime. Counting is a loop nest like any other: quadratic in the length, and
    parallel over every element.
    """
    from tvm import te, tirx

    shape = shape_of(x)
    can_be_nan = "float" in dtype_of(x)

    def element(index: Any, own: Any, a: Any) -> Any:
        other = te.reduce_axis((0, own[0]), name="other")
        mine, theirs = a(*index), a(*index[:axis], other, *index[axis + 1 :])
        before = theirs > mine if descending else theirs < mine
        tied = theirs == mine
        if can_be_nan:
            mine_is, theirs_is = tirx.isnan(mine), tirx.isnan(theirs)
            larger, smaller = (theirs_is, mine_is) if descending else (mine_is, theirs_is)
            before = tirx.any(before, tirx.all(larger, tirx.Not(smaller)))
            tied = tirx.any(tied, tirx.all(mine_is, theirs_is))
        earlier = tirx.all(tied, other < index[axis])
        return te.sum(tirx.Select(tirx.any(before, earlier), as_size(1), as_size(0)), axis=other)

    return make.compute(shape, element, x, sizes=[shape[axis]], name="ranks")


def _ordered(make: Maker, x: Any, axis: int, descending: bool, length: Any) -> tuple[Any, Any]:
    """The first ``length`` elements in order, and where they were."""
    from tvm import te, tirx

    source = make.cast(x, "int8" if dtype_of(x) == "bool" else wide(dtype_of(x)))
    ranks = _ranks(make, source, axis, descending)
    shape = shape_of(x)
    out = [*shape[:axis], length, *shape[axis + 1 :]]

    def place(index: Any, own: Any, rank: Any) -> Any:
        at = te.reduce_axis((0, own[0]), name="at")
        is_here = rank(*index[:axis], at, *index[axis + 1 :]) == index[axis]
        return te.sum(tirx.Select(is_here, at.var, as_size(0)), axis=at)

    places = make.compute(out, place, ranks, sizes=[shape[axis]], name="places")
    values = make.compute(out, lambda i, _, a, at: a(*i[:axis], at(*i), *i[axis + 1 :]), x, places, name="ordered")
    return values, places


def _sort(make: Maker, x: Any, dim: int = -1, descending: bool = False) -> Any:
    axis = axis_of(dim, rank_of(x))
    return _ordered(make, x, axis, descending, shape_of(x)[axis])


def _stable_sort(make: Maker, x: Any, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    return _sort(make, x, dim, descending)


def _argsort(make: Maker, x: Any, dim: int = -1, descending: bool = False) -> Any:
    return _sort(make, x, dim, descending)[1]


def _stable_argsort(make: Maker, x: Any, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    return _sort(make, x, dim, descending)[1]


def _topk(make: Maker, x: Any, k: Value, dim: int = -1, largest: bool = True, is_sorted: bool = True) -> Any:
    axis = axis_of(dim, rank_of(x))
    return _ordered(make, x, axis, largest, make.out_shape[axis])


def _cumsum(make: Maker, x: Any, dim: int, dtype: Any = None) -> Any:
    from tvm import relax

    if rank_of(x) == 0:
        return make.result(x)
    source = make.cast(x, make.work_dtype)
    return make.result(make.emit(relax.op.cumsum(source, axis=axis_of(dim, rank_of(x)), dtype=make.work_dtype)))


def _cumprod(make: Maker, x: Any, dim: int, dtype: Any = None) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    return make.result(make.emit(relax.op.cumprod(source, axis=axis_of(dim, rank_of(x)), dtype=make.work_dtype)))


def _histc(make: Maker, x: Any, bins: int = 100, low: float = 0, high: float = 0) -> Any:
    """How many elements fall in each of the equal bins from low to high."""
    from tvm import te, tirx

    if low == high:
        raise Unsupported("a histogram over the range of the data")
    dtype = make.work_dtype
    total = product_of(shape_of(x))
    flat = make.reshape(make.cast(x, dtype), [total])

    def element(index: Any, own: Any, a: Any) -> Any:
        at = te.reduce_axis((0, own[0]), name="at")
        lowest, highest = tirx.const(low, dtype), tirx.const(high, dtype)
        value = a(at)
        bin_ = tirx.Cast("int64", (value - lowest) * tirx.const(bins, dtype) / (highest - lowest))
        chosen = tirx.min(bin_, as_size(bins - 1)) == index[0]  # the last bin holds its upper end
        counts = tirx.all(value >= lowest, value <= highest, chosen)
        return te.sum(tirx.Select(counts, tirx.const(1, dtype), tirx.const(0, dtype)), axis=at)

    return make.result(make.compute([bins], element, flat, sizes=[total], name="histogram"))


ORDERING: dict[str, Converter] = {
    "aten.sort.default": _sort,
    "aten.sort.stable": _stable_sort,
    "aten.argsort.default": _argsort,
    "aten.argsort.stable": _stable_argsort,
    "aten.topk.default": _topk,
    "aten.cumsum.default": _cumsum,
    "aten.cumprod.default": _cumprod,
    "aten.histc.default": _histc,
}
