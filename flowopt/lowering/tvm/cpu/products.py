"""Legalisation of matmul: the right operand is packed into panels by a kernel of its own, then multiplied in tiles.

The packing of a weight depends on parameters alone and is lifted out of ``main``; that of an activation runs each time.
Operands other than float32, vectors, and empty reductions keep the default legalisation.
"""

from typing import Any

from tvm import relax
from tvm.target import Target

from flowopt.lowering.tvm.cpu.registers import registers_of
from flowopt.lowering.tvm.cpu.tile import constant, packed, product, tile_of

# The numbers that FuseOps knows: what follows elementwise joins the kernel; what is injective joins its neighbours.
OUTPUT_FUSES = 4
INJECTIVE = 2


def matmul(builder: Any, call: Any) -> Any:
    """Legaliser of relax.matmul: (.., m, k) x (.., k, n) -> (.., m, n), float32."""
    left, right = call.args
    if not _is_tiled(left, right, call):
        return _default(builder, call)
    out_shape = call.ty.shape.values
    *batch, rows, columns = out_shape
    if len(right.ty.shape.values) == 2 and constant(rows) == 1 and len(batch) >= 1:
        # One row for each element of the batch: the batch is the rows.
        flat = builder.emit(relax.op.reshape(left, [*batch[:-1], batch[-1], left.ty.shape.values[-1]]))
        narrow = builder.emit(_multiplied(builder, flat, right, [*batch[:-1], batch[-1], columns], Target.current()))
        return relax.op.reshape(narrow, list(out_shape))
    return _multiplied(builder, left, right, out_shape, Target.current())


def _multiplied(builder: Any, left: Any, right: Any, out_shape: Any, target: Any) -> Any:
    tile = tile_of(constant(out_shape[-2]), constant(out_shape[-1]), registers_of(target))
    panels = builder.emit(
        builder.call_te(
            lambda b: packed(b, tile.columns),
            right,
            primfunc_name_hint="pack",
            primfunc_attrs={"op_pattern": INJECTIVE},
        )
    )

    def multiplied(a: Any, p: Any, extents: Any) -> Any:
        return product(a, p, extents[:-2], extents[-2], extents[-1], tile)

    return builder.call_te(
        multiplied,
        left,
        panels,
        list(out_shape),
        primfunc_name_hint="multiply",
        primfunc_attrs={"op_pattern": OUTPUT_FUSES},
    )


def _is_tiled(left: Any, right: Any, call: Any) -> bool:
    if any(str(tensor.ty.dtype) != "float32" for tensor in (left, right, call)):
        return False
    if left.ty.shape is None or right.ty.shape is None or call.ty.shape is None:
        return False
    if min(len(left.ty.shape.values), len(right.ty.shape.values)) < 2:
        return False
    return 0 not in [constant(extent) for tensor in (left, right) for extent in tensor.ty.shape.values]


def _default(builder: Any, call: Any) -> Any:
    return call.op.get_attr("FLegalize")(builder, call)
