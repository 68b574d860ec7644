"""Largest and smallest elements, where they are, and truth of any or all."""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    axes_of,
    axis_of,
    dtype_of,
    product_of,
    rank_of,
    shape_of,
    wide,
)
from flowopt.lowering.tvm.importing.reductions import reduced

Converter = Callable[..., Any]
Axes = Sequence[int] | int | None


def _extreme(name: str) -> Converter:
    def extreme(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False) -> Any:
        dtype = dtype_of(x)
        source = make.cast(x, "int8" if dtype == "bool" else wide(dtype))
        return make.cast(outermost(make, source, name, dim, keepdim), dtype)

    return extreme


def outermost(make: Maker, x: Any, name: str, dim: Axes, keepdim: bool) -> Any:
    """Largest or smallest over axes.

    Not ``relax.max``: it starts from the lowest finite number, which is the result where everything is -inf, and
    loses NaN.
    """
    from tvm import te, tirx

    if rank_of(x) == 0 or "float" not in dtype_of(x):
        return reduced(make, name, x, dim, keepdim)
    shape, axes = shape_of(x), axes_of(dim, rank_of(x))
    kept = [a for a in range(len(shape)) if a not in axes]

    def better(a: Any, b: Any) -> Any:
        further = tirx.max(a, b) if name == "max" else tirx.min(a, b)
        return tirx.Select(tirx.isnan(a), a, tirx.Select(tirx.isnan(b), b, further))

    def worst(dtype: Any) -> Any:
        return -tirx.infinity(dtype) if name == "max" else tirx.infinity(dtype)

    reducer = te.comm_reducer(better, worst, name=name)

    def element(index: Any, own: Any, a: Any) -> Any:
        inner = {axis: te.reduce_axis((0, s), name=f"r{axis}") for axis, s in zip(axes, own, strict=True)}
        spatial = dict(zip(range(len(shape)) if keepdim else kept, index, strict=True))
        return reducer(a(*(inner.get(k, spatial.get(k)) for k in range(len(shape)))), axis=list(inner.values()))

    out = [1 if a in axes else s for a, s in enumerate(shape)] if keepdim else [shape[a] for a in kept]
    return make.compute(out, element, x, sizes=[shape[a] for a in axes], name=name)


def _arg(name: str) -> Converter:
    def place(make: Maker, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if rank_of(x) == 0:
            return make.full((), 0, "int64")
        source = make.cast(x, "int8" if dtype_of(x) == "bool" else wide(dtype_of(x)))
        if dim is None:
            total = product_of(shape_of(x))
            first = _first_place(make, make.reshape(source, [total]), name, 0)
        else:
            first = _first_place(make, source, name, axis_of(dim, rank_of(x)))
        return make.reshape(
            first, make.out_shape if not isinstance(make.recorded, (tuple, list)) else _shape_of_places(make)
        )

    return place


def _first_place(make: Maker, x: Any, name: str, axis: int) -> Any:
    """Where the outermost element of an axis first stands; relax.argmax says -1 where everything is -inf."""
    from tvm import te, tirx

    peak = outermost(make, x, name, axis, True)
    size = shape_of(x)[axis]
    is_float = "float" in dtype_of(x)

    def element(index: Any, own: Any, a: Any, top: Any) -> Any:
        at = te.reduce_axis((0, own[0]), name="at")
        value = a(*index[:axis], at, *index[axis + 1 :])
        is_top = value == top(*index)
        if is_float:
            is_top = tirx.any(is_top, tirx.isnan(value))
        return te.min(tirx.Select(is_top, at.var, own[0]), axis=at)

    shape = shape_of(x)
    shape[axis] = 1
    return make.compute(shape, element, x, peak, sizes=[size], name=f"arg{name}")


def _shape_of_places(make: Maker) -> list[Any]:
    return [make.size(s) for s in make.recorded[1].shape]


def _extreme_and_place(name: str) -> Converter:
    def both(make: Maker, x: Any, dim: int, keepdim: bool = False) -> Any:
        return _extreme(name)(make, x, dim, keepdim), _arg(name)(make, x, dim, keepdim)

    return both


def _tested(name: str) -> Converter:
    """``any`` is the largest of the truth values, ``all`` the smallest."""

    def test(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False) -> Any:
        truth = make.cast(make.cast(x, "bool"), "int8")
        return make.cast(reduced(make, name, truth, dim, keepdim), "bool")

    return test


EXTREMES: dict[str, Converter] = {
    "aten.amax.default": _extreme("max"),
    "aten.amin.default": _extreme("min"),
    "aten.max.default": _extreme("max"),
    "aten.min.default": _extreme("min"),
    "aten.max.dim": _extreme_and_place("max"),
    "aten.min.dim": _extreme_and_place("min"),
    "aten.argmax.default": _arg("max"),
    "aten.argmin.default": _arg("min"),
    **{f"aten.any.{o}": _tested("max") for o in ("default", "dim", "dims")},
    **{f"aten.all.{o}": _tested("min") for o in ("default", "dim", "dims")},
}
