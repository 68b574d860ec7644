"""Sums, means and variances over axes. Half-precision inputs are summed in float32 and rounded once."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    axes_of,
    dtype_of,
    product_of,
    rank_of,
    shape_of,
)

Converter = Callable[..., Any]
_FEW = 256
Axes = Sequence[int] | int | None


def _sum(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return make.result(reduced(make, "sum", make.cast(x, make.work_dtype), dim, keepdim))


def _sum_all(make: Maker, x: Any, dtype: Any = None) -> Any:
    return _sum(make, x)


def reduced(make: Maker, name: str, x: Any, dim: Axes, keepdim: bool) -> Any:
    """A Relax reduction over axes, in the tensor's own dtype."""
    from tvm import relax

    if rank_of(x) == 0:
        return x
    axes = axes_of(dim, rank_of(x))
    if name != "sum" or dtype_of(x) != "float32" or _is_short([shape_of(x)[axis] for axis in axes]):
        return make.emit(getattr(relax.op, name)(x, axis=axes, keepdims=keepdim))
    # TVM adds one number after the other: of millions, the last ones would be rounded away.
    wide = make.emit(relax.op.sum(make.cast(x, "float64"), axis=axes, keepdims=keepdim))
    return make.cast(wide, "float32")


def _is_short(sizes: Sequence[Any]) -> bool:
    """Whether so few numbers are added that their order does not matter."""
    from tvm import tirx

    known = [int(size) for size in sizes if isinstance(size, (int, tirx.IntImm))]
    return len(known) == len(sizes) and prod(known) <= _FEW


def _count(make: Maker, x: Any, dim: Axes, dtype: str) -> Any:
    return make.as_tensor(product_of([shape_of(x)[axis] for axis in axes_of(dim, rank_of(x))]), dtype)


def mean(make: Maker, x: Any, dim: Axes, keepdim: bool) -> Any:
    """The mean in the tensor's own dtype."""
    from tvm import relax

    total = reduced(make, "sum", x, dim, keepdim)
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
    total = reduced(make, "sum", make.emit(relax.op.multiply(off, off)), dim, keepdim)
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


def _prod(make: Maker, x: Any, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    return make.result(reduced(make, "prod", make.cast(x, make.work_dtype), dim, keepdim))


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
    "aten.prod.default": lambda make, x, dtype=None: _prod(make, x),
    "aten.prod.dim_int": _prod,
}
