"""Legalisation of softmax, layer norm and RMS norm over trailing axes to kernels over rows."""

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import relax, tirx
from tvm.target import Target

from flowopt.lowering.tvm.cpu.registers import registers_of
from flowopt.lowering.tvm.cpu.rows import layer_norm_rows, rms_norm_rows, softmax_rows
from flowopt.lowering.tvm.cpu.tile import constant


def softmax(builder: Any, call: Any) -> Any:
    """Legaliser of relax.nn.softmax."""
    (x,) = call.args
    trailing = _trailing(x, [int(call.attrs.axis)])
    if trailing is None:
        return _default(builder, call)
    return _by_rows(builder, x, [], trailing, softmax_rows, "softmax")


def layer_norm(builder: Any, call: Any) -> Any:
    """Legaliser of relax.nn.layer_norm."""
    x, weight, bias = call.args
    trailing = _trailing(x, [int(axis) for axis in call.attrs.axes])
    if trailing is None:
        return _default(builder, call)
    scaled, centered = bool(call.attrs.scale), bool(call.attrs.center)
    vectors = [*([weight] if scaled else []), *([bias] if centered else [])]

    def kernel(rows: Any, columns: Any, lanes: int) -> Any:
        return layer_norm_rows(rows, columns, lanes, float(call.attrs.epsilon), scaled, centered)

    return _by_rows(builder, x, vectors, trailing, kernel, "layer_norm")


def rms_norm(builder: Any, call: Any) -> Any:
    """Legaliser of relax.nn.rms_norm."""
    x, weight = call.args
    trailing = _trailing(x, [int(axis) for axis in call.attrs.axes])
    if trailing is None:
        return _default(builder, call)

    def kernel(rows: Any, columns: Any, lanes: int) -> Any:
        return rms_norm_rows(rows, columns, lanes, float(call.attrs.epsilon))

    return _by_rows(builder, x, [weight], trailing, kernel, "rms_norm")


def _by_rows(
    builder: Any, x: Any, vectors: list[Any], trailing: int, kernel: Callable[[Any, Any, int], Any], name: str
) -> Any:
    extents = list(x.ty.shape.values)
    rows, columns = _product(extents[:-trailing]), _product(extents[-trailing:])
    flat = builder.emit(relax.op.reshape(x, [rows, columns]))
    vectors = [v if len(v.ty.shape.values) == 1 else builder.emit(relax.op.reshape(v, [columns])) for v in vectors]
    own_rows = rows if constant(rows) is not None else tirx.Var("rows", "int64")
    own_columns = columns if constant(columns) is not None else tirx.Var("columns", "int64")
    function = kernel(own_rows, own_columns, registers_of(Target.current()).lanes)
    result = builder.emit(
        relax.call_tir(
            builder.add_func(function, name),
            relax.Tuple([flat, *vectors]),
            relax.TensorType([rows, columns], "float32"),
        )
    )
    return relax.op.reshape(result, extents)


def _product(extents: list[Any]) -> Any:
    fixed = prod(value for extent in extents if (value := constant(extent)) is not None)
    free = [extent for extent in extents if constant(extent) is None]
    result = tirx.IntImm("int64", fixed)
    for extent in free:
        result = extent if constant(result) == 1 else result * extent
    return result


def _trailing(x: Any, axes: list[int]) -> int | None:
    """How many trailing axes these are; None when they are not, or x is no float32 tensor of known shape."""
    if str(x.ty.dtype) != "float32" or x.ty.shape is None:
        return None
    rank = len(x.ty.shape.values)
    wanted = sorted(axis % rank for axis in axes)
    if wanted != list(range(rank - len(axes), rank)) or 0 in [constant(e) for e in x.ty.shape.values]:
        return None
    return len(axes)


def _default(builder: Any, call: Any) -> Any:
    return call.op.get_attr("FLegalize")(builder, call)
