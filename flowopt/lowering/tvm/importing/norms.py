"""Vector norms and logarithms of sums of exponentials."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.extremes import outermost
from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
)
from flowopt.lowering.tvm.importing.reductions import reduced

Converter = Callable[..., Any]
Axes = Sequence[int] | int | None


def _norm(make: Maker, x: Any, ord: Value = 2, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    size = make.emit(relax.op.abs(source))
    if ord in (math.inf, -math.inf):
        return make.result(outermost(make, size, "max" if ord > 0 else "min", dim, keepdim))
    if ord == 1:
        return make.result(reduced(make, "sum", size, dim, keepdim))
    if ord != 2:
        raise Unsupported(f"the norm of order {ord}")
    squares = make.emit(relax.op.multiply(source, source))
    return make.result(make.emit(relax.op.sqrt(reduced(make, "sum", squares, dim, keepdim))))


def _norm_scalar(
    make: Maker, x: Any, ord: Value = 2, dim: Axes = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    return _norm(make, x, 2 if ord is None else ord, dim, keepdim)


def _logsumexp(make: Maker, x: Any, dim: Axes, keepdim: bool = False) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    peak = reduced(make, "max", source, dim, True)
    # An infinite peak is taken as zero: inf - inf is no number.
    peak = make.emit(relax.op.where(relax.op.isinf(peak), make.constant(0, make.work_dtype), peak))
    total = reduced(make, "sum", make.emit(relax.op.exp(relax.op.subtract(source, peak))), dim, True)
    made = make.emit(relax.op.add(relax.op.log(total), peak))
    return make.result(make.reshape(made, make.out_shape))


NORMS: dict[str, Converter] = {
    "aten.linalg_vector_norm.default": _norm,
    "aten.norm.ScalarOpt_dim": _norm_scalar,
    "aten.norm.Scalar": _norm_scalar,
    "aten.logsumexp.default": _logsumexp,
}
