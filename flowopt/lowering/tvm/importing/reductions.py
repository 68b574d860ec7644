"""Sums, means, extremes and norms over axes. Half-precision inputs are summed in float32 and rounded once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    axes_of,
    axis_of,
    dtype_of,
    rank_of,
    shape_of,
    wide,
)

Converter = Callable[..., Any]
Axes = Sequence[int] | int | None


def _sum(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return make.result(_reduced(make, "sum", make.cast(x, make.work_dtype), dim, keepdim))


def _sum_all(make: Maker, x: Any, dtype: Any = None) -> Any:
    return _sum(make, x)


def _reduced(make: Maker, name: str, x: Any, dim: Axes, keepdim: bool) -> Any:
    from tvm import relax

    if rank_of(x) == 0:
        return x
    return make.emit(getattr(relax.op, name)(x, axis=axes_of(dim, rank_of(x)), keepdims=keepdim))


def _count(make: Maker, x: Any, dim: Axes, dtype: str) -> Any:
    return make.as_tensor(_product([shape_of(x)[axis] for axis in axes_of(dim, rank_of(x))]), dtype)


def _product(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = size * total
    return total


def mean(make: Maker, x: Any, dim: Axes, keepdim: bool) -> Any:
    """The mean in the tensor's own dtype."""
    from tvm import relax

    total = _reduced(make, "sum", x, dim, keepdim)
    return make.emit(relax.op.divide(total, _count(make, x, dim, dtype_of(x))))


def _mean(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return make.result(mean(make, make.cast(x, make.work_dtype), dim, keepdim))


def _mean_all(make: Maker, x: Any, dtype: Any = None) -> Any:
    return _mean(make, x)


def variance(make: Maker, x: Any, dim: Axes, correction: float, keepdim: bool) -> Any:
    """Mean square of the deviations: E[x^2] - E[x]^2 would cancel."""
    from tvm import relax

    dtype = dtype_of(x)
    off = make.emit(relax.op.subtract(x, mean(make, x, dim, True)))
    total = _reduced(make, "sum", make.emit(relax.op.multiply(off, off)), dim, keepdim)
    count = _count(make, x, dim, dtype)
    if correction:
        left = relax.op.subtract(count, make.constant(correction, dtype))
        count = make.emit(relax.op.maximum(left, make.constant(0, dtype)))
    return make.emit(relax.op.divide(total, count))


def _var(make: Maker, x: Any, dim: Axes = None, correction: float | None = 1, keepdim: bool = False) -> Any:
    source = make.cast(x, make.work_dtype)
    return make.result(variance(make, source, dim, 1 if correction is None else correction, keepdim))


def _std(make: Maker, x: Any, dim: Axes = None, correction: float | None = 1, keepdim: bool = False) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    spread = variance(make, source, dim, 1 if correction is None else correction, keepdim)
    return make.result(make.emit(relax.op.sqrt(spread)))


def _var_mean(make: Maker, x: Any, dim: Axes = None, correction: float | None = 1, keepdim: bool = False) -> Any:
    source = make.cast(x, make.work_dtype)
    spread = variance(make, source, dim, 1 if correction is None else correction, keepdim)
    return make.result(spread), make.result(mean(make, source, dim, keepdim))


def _unbiased(converter: Converter) -> Converter:
    return lambda make, x, unbiased=True: converter(make, x, None, 1 if unbiased else 0, False)


def _unbiased_dim(converter: Converter) -> Converter:
    return lambda make, x, dim, unbiased=True, keepdim=False: converter(make, x, dim, 1 if unbiased else 0, keepdim)


def _extreme(name: str) -> Converter:
    def extreme(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False) -> Any:
        dtype = dtype_of(x)
        source = make.cast(x, "int8" if dtype == "bool" else wide(dtype))
        return make.cast(_outermost(make, source, name, dim, keepdim), dtype)

    return extreme


def _outermost(make: Maker, x: Any, name: str, dim: Axes, keepdim: bool) -> Any:
    """Largest or smallest over axes.

    Not ``relax.max``: it starts from the lowest finite number, which is the result where everything is -inf, and
    loses NaN.
    """
    from tvm import te, tirx

    if rank_of(x) == 0 or "float" not in dtype_of(x):
        return _reduced(make, name, x, dim, keepdim)
    shape, axes = shape_of(x), axes_of(dim, rank_of(x))
    kept = [a for a in range(len(shape)) if a not in axes]

    def better(a: Any, b: Any) -> Any:
        further = tirx.max(a, b) if name == "max" else tirx.min(a, b)
        return tirx.Select(tirx.isnan(a), a, tirx.Select(tirx.isnan(b), b, further))

    def worst(dtype: Any) -> Any:
        return -tirx.infinity(dtype) if name == "max" else tirx.infinity(dtype)

    reducer = te.comm_reducer(better, worst, name=name)

    def element(index: Any, own: Any, a: Any) -> Any:
        reduced = {axis: te.reduce_axis((0, s), name=f"r{axis}") for axis, s in zip(axes, own, strict=True)}
        spatial = dict(zip(range(len(shape)) if keepdim else kept, index, strict=True))
        return reducer(a(*(reduced.get(k, spatial.get(k)) for k in range(len(shape)))), axis=list(reduced.values()))

    out = [1 if a in axes else s for a, s in enumerate(shape)] if keepdim else [shape[a] for a in kept]
    return make.compute(out, element, x, sizes=[shape[a] for a in axes], name=name)


def _arg(name: str) -> Converter:
    def place(make: Maker, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if rank_of(x) == 0:
            return make.full((), 0, "int64")
        source = make.cast(x, "int8" if dtype_of(x) == "bool" else wide(dtype_of(x)))
        if dim is None:
            total = _product(shape_of(x))
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

    peak = _outermost(make, x, name, axis, True)
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
        return make.cast(_reduced(make, name, truth, dim, keepdim), "bool")

    return test


def _prod(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return make.result(_reduced(make, "prod", make.cast(x, make.work_dtype), dim, keepdim))


def _norm(make: Maker, x: Any, ord: Value = 2, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    size = make.emit(relax.op.abs(source))
    if ord in (math.inf, -math.inf):
        return make.result(_outermost(make, size, "max" if ord > 0 else "min", dim, keepdim))
    if ord == 1:
        return make.result(_reduced(make, "sum", size, dim, keepdim))
    if ord != 2:
        raise Unsupported(f"the norm of order {ord}")
    squares = make.emit(relax.op.multiply(source, source))
    return make.result(make.emit(relax.op.sqrt(_reduced(make, "sum", squares, dim, keepdim))))


def _norm_scalar(
    make: Maker, x: Any, ord: Value = 2, dim: Axes = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    return _norm(make, x, 2 if ord is None else ord, dim, keepdim)


def _logsumexp(make: Maker, x: Any, dim: Axes, keepdim: bool = False) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    peak = _reduced(make, "max", source, dim, True)
    # An infinite peak is taken as zero: inf - inf is no number.
    peak = make.emit(relax.op.where(relax.op.isinf(peak), make.constant(0, make.work_dtype), peak))
    total = _reduced(make, "sum", make.emit(relax.op.exp(relax.op.subtract(source, peak))), dim, True)
    made = make.emit(relax.op.add(relax.op.log(total), peak))
    return make.result(make.reshape(made, make.out_shape))


REDUCTIONS: dict[str, Converter] = {
    "aten.sum.default": _sum_all,
    "aten.sum.dim_IntList": _sum,
    "aten.mean.default": _mean_all,
    "aten.mean.dim": _mean,
    "aten.var.correction": _var,
    "aten.var.default": _unbiased(_var),
    "aten.var.dim": _unbiased_dim(_var),
    "aten.std.correction": _std,
    "aten.std.default": _unbiased(_std),
    "aten.std.dim": _unbiased_dim(_std),
    "aten.var_mean.correction": _var_mean,
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
    "aten.prod.default": lambda make, x, dtype=None: _prod(make, x),
    "aten.prod.dim_int": _prod,
    "aten.linalg_vector_norm.default": _norm,
    "aten.norm.ScalarOpt_dim": _norm_scalar,
    "aten.norm.Scalar": _norm_scalar,
    "aten.logsumexp.default": _logsumexp,
}
