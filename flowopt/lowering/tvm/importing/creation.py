"""Tensors made of numbers and sizes, and conversions of dtype."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, Value, dtype_of

Converter = Callable[..., Any]


def _filled(number: float) -> Converter:
    return lambda make, *ignored: make.full(make.out_shape, number, make.out_dtype)


def _full(make: Maker, size: Any, value: Value, *ignored: Any) -> Any:
    """``full``, ``full_like`` and ``new_full``; the shape and the dtype are the recorded ones."""
    return make.full(make.out_shape, value, make.out_dtype)


def _new_full(make: Maker, x: Any, size: Any, value: Value, *ignored: Any) -> Any:
    return make.full(make.out_shape, value, make.out_dtype)


def _scalar_tensor(make: Maker, value: Value, *ignored: Any) -> Any:
    return make.as_tensor(value, make.out_dtype)


def _arange(make: Maker, end: Value, *ignored: Any) -> Any:
    return _steps(make, 0, 1)


def _arange_from(make: Maker, start: Value, end: Value, *ignored: Any) -> Any:
    return _steps(make, start, 1)


def _arange_by(make: Maker, start: Value, end: Value, step: Value = 1, *ignored: Any) -> Any:
    return _steps(make, start, step)


def _steps(make: Maker, start: Value, step: Value) -> Any:
    """start + i * step; torch computes floating steps in float64 and rounds once."""
    from tvm import tirx

    dtype = make.out_dtype
    work = "float64" if "float" in dtype else "int64"
    sizes = [x for x in (start, step) if not isinstance(x, (int, float))]

    def element(index: Any, own: Any) -> Any:
        free = iter(own)
        first, by = (
            tirx.const(x, work) if isinstance(x, (int, float)) else tirx.Cast(work, next(free)) for x in (start, step)
        )
        return tirx.Cast(dtype, first + tirx.Cast(work, index[0]) * by)

    return make.compute(make.out_shape, element, sizes=sizes, name="arange")


def _eye(make: Maker, *ignored: Any) -> Any:
    from tvm import tirx

    dtype = make.out_dtype
    return make.compute(make.out_shape, lambda i, _: tirx.Cast(dtype, i[0] == i[1]), name="eye")


def _converted(make: Maker, x: Any, *ignored: Any) -> Any:
    return make.result(x)


def _same(make: Maker, x: Any, *ignored: Any) -> Any:
    if make.out_dtype != dtype_of(x):
        raise Unsupported("a copy of another dtype")
    return x


def _dropout(make: Maker, x: Any, p: float, train: bool) -> Any:
    if train and p:
        raise Unsupported("dropout in train mode")
    return x


CREATION: dict[str, Converter] = {
    **dict.fromkeys(("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default"), _filled(0)),
    **dict.fromkeys(("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default"), _filled(1)),
    # Uninitialised memory: whoever reads it before it is written reads anything, and zeros are repeatable.
    **dict.fromkeys(("aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default"), _filled(0)),
    **dict.fromkeys(("aten.empty_permuted.default", "aten.new_empty_strided.default"), _filled(0)),
    **dict.fromkeys(("aten.full.default", "aten.full_like.default", "aten.fill.Scalar"), _full),
    "aten.fill.Tensor": _full,
    "aten.new_full.default": _new_full,
    "aten.scalar_tensor.default": _scalar_tensor,
    "aten.arange.default": _arange,
    "aten.arange.start": _arange_from,
    "aten.arange.start_step": _arange_by,
    "aten.eye.default": _eye,
    "aten.eye.m": _eye,
    **dict.fromkeys(
        ("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.type_as.default"), _converted
    ),
    "prims.convert_element_type.default": _converted,
    **dict.fromkeys(
        ("aten.clone.default", "aten.detach.default", "aten.alias.default", "aten.contiguous.default"), _same
    ),
    "aten.dropout.default": _dropout,
    **dict.fromkeys(("aten.lift_fresh_copy.default", "aten.lift_fresh.default"), _same),
}
