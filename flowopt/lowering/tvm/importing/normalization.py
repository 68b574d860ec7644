"""Normalisations: layer and RMS norms as single Relax operators, which kernels are written for; others in parts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flowopt.lowering.tvm.importing.maker import Maker, dtype_of, rank_of, shape_of
from flowopt.lowering.tvm.importing.reductions import mean, variance

Converter = Callable[..., Any]


def _layer_norm(
    make: Maker,
    x: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *ignored: Any,
) -> Any:
    from tvm import relax

    axes = list(range(rank_of(x) - len(normalized_shape), rank_of(x)))
    gain, offset = _affine(make, normalized_shape, weight, bias)
    source = make.cast(x, make.work_dtype)
    if make.work_dtype == "float64":  # TVM's kernel knows float32 alone
        made = make.emit(relax.op.multiply(_standardized(make, source, axes, eps), gain))
        return make.emit(relax.op.add(made, offset))
    return make.result(make.emit(relax.op.nn.layer_norm(source, gain, offset, axes=axes, epsilon=eps)))


def _affine(make: Maker, shape: Sequence[int], weight: Any, bias: Any) -> tuple[Any, Any]:
    import numpy as np

    size, dtype = [int(s) for s in shape], make.work_dtype
    gain = make.constant(np.ones(size), dtype) if weight is None else make.cast(weight, dtype)
    offset = make.constant(np.zeros(size), dtype) if bias is None else make.cast(bias, dtype)
    return gain, offset


def _native_layer_norm(make: Maker, x: Any, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    return _layer_norm(make, x, normalized_shape, weight, bias, eps), None, None


def _rms_norm(
    make: Maker, x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    from tvm import relax

    axes = list(range(rank_of(x) - len(normalized_shape), rank_of(x)))
    source = make.cast(x, make.work_dtype)
    gain, _ = _affine(make, normalized_shape, weight, None)
    # torch takes the machine epsilon of the computed dtype where none is given.
    epsilon = float(torch.finfo(getattr(torch, make.work_dtype)).eps) if eps is None else eps
    return make.result(make.emit(relax.op.nn.rms_norm(source, gain, axes=axes, epsilon=epsilon)))


def _group_norm(
    make: Maker, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *ignored: Any
) -> Any:
    shape = shape_of(x)
    inner: Any = 1
    for size in shape[2:]:
        inner = size * inner
    # One axis for all of a group: relax.nn.group_norm takes the variance as a difference of squares, and cancels.
    grouped = make.reshape(make.cast(x, make.work_dtype), [shape[0], num_groups, shape[1] // num_groups * inner])
    normal = make.reshape(_standardized(make, grouped, 2, eps), shape)
    return make.result(_scaled_channels(make, normal, weight, bias))


def _native_group_norm(
    make: Maker, x: Any, weight: Any, bias: Any, n: Any, c: Any, hw: Any, group: int, eps: float
) -> Any:
    return _group_norm(make, x, group, weight, bias, eps), None, None


def _standardized(make: Maker, x: Any, axis: int | list[int], eps: float) -> Any:
    from tvm import relax

    off = make.emit(relax.op.subtract(x, mean(make, x, axis, True)))
    spread = variance(make, x, axis, 0, True)
    return make.emit(relax.op.multiply(off, relax.op.rsqrt(relax.op.add(spread, make.constant(eps, dtype_of(x))))))


def _scaled_channels(make: Maker, x: Any, weight: Any, bias: Any) -> Any:
    from tvm import relax

    for value, operator in ((weight, relax.op.multiply), (bias, relax.op.add)):
        if value is not None:
            x = make.emit(operator(x, _per_channel(make, value, rank_of(x), dtype_of(x))))
    return x


def _per_channel(make: Maker, value: Any, rank: int, dtype: str) -> Any:
    return make.reshape(make.cast(value, dtype), [1, shape_of(value)[0], *[1] * (rank - 2)])


def _batch_norm(
    make: Maker, x: Any, weight: Any, bias: Any, mean_of: Any, variance_of: Any, momentum: float, eps: float
) -> Any:
    from tvm import relax

    dtype = make.work_dtype
    factor = make.emit(relax.op.rsqrt(relax.op.add(make.cast(variance_of, dtype), make.constant(eps, dtype))))
    if weight is not None:
        factor = make.emit(relax.op.multiply(factor, make.cast(weight, dtype)))
    center = _per_channel(make, mean_of, rank_of(x), dtype)
    source = make.emit(relax.op.subtract(make.cast(x, dtype), center))
    return make.result(_scaled_channels(make, source, factor, bias)), None, None


NORMALIZATION: dict[str, Converter] = {
    "aten.layer_norm.default": _layer_norm,
    "aten.native_layer_norm.default": _native_layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.group_norm.default": _group_norm,
    "aten.native_group_norm.default": _native_group_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
}
