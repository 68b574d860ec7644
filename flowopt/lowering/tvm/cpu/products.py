"""Legalisation of matmul: the right operand is packed into panels by a kernel of its own, then multiplied in tiles.

The packing of a weight depends on parameters alone and is lifted out of ``main``; that of an activation runs each time.
Operands other than float32, vectors, and empty reductions keep the default legalisation.
"""

from typing import Any

from tvm import relax, te, tirx

from flowopt.lowering.tvm.cpu.registers import registers_of
from flowopt.lowering.tvm.cpu.tile import constant, packed, panels, product, tile_of

# The numbers that FuseOps knows: what follows elementwise joins the kernel; what is injective joins its neighbours.
OUTPUT_FUSES = 4
INJECTIVE = 2


def matmul(builder: Any, call: Any) -> Any:
    """Legaliser of relax.matmul: (.., m, k) x (.., k, n) -> (.., m, n), float32."""
    left, right = call.args
    if not _is_tiled(left, right, call):
        return _default(builder, call)
    from tvm.target import Target

    out_shape = call.ty.shape.values
    *batch, rows, columns = out_shape
    if len(right.ty.shape.values) == 2 and constant(rows) == 1 and len(batch) >= 1:
        # One row for each element of the batch: the batch is the rows.
        flat = builder.emit(relax.op.reshape(left, [*batch[:-1], batch[-1], left.ty.shape.values[-1]]))
        narrow = builder.emit(_multiplied(builder, flat, right, [*batch[:-1], batch[-1], columns], Target.current()))
        return relax.op.reshape(narrow, out_shape)
    return _multiplied(builder, left, right, out_shape, Target.current())


def _multiplied(builder: Any, left: Any, right: Any, out_shape: Any, target: Any) -> Any:
    *batch, rows, columns = out_shape
    tile = tile_of(constant(rows), constant(columns), registers_of(target))
    fresh = _FreshExtents()
    b = te.placeholder(fresh.of(right.ty.shape.values), name="B")
    pack = te.create_prim_func([b, packed(b, tile.columns)]).with_attr("op_pattern", INJECTIVE)
    *outer, depth, n = right.ty.shape.values
    panel_shape = relax.ShapeExpr([*outer, panels(n, tile.columns), depth, tirx.IntImm("int64", tile.columns)])
    packed_right = builder.emit(
        relax.call_tir(
            builder.add_func(pack, "pack"), relax.Tuple([right]), relax.TensorType(panel_shape, call_dtype(right))
        )
    )
    fresh = _FreshExtents()
    a = te.placeholder(fresh.of(left.ty.shape.values), name="A")
    extents = fresh.of(right.ty.shape.values)
    p = te.placeholder(
        (*extents[:-2], panels(extents[-1], tile.columns), extents[-2], tirx.IntImm("int64", tile.columns)), name="P"
    )
    out = fresh.of(out_shape)
    multiply = te.create_prim_func([a, p, product(a, p, out[:-2], out[-2], out[-1], tile)])
    multiply = multiply.with_attr("op_pattern", OUTPUT_FUSES)
    return relax.call_tir(
        builder.add_func(multiply, "multiply"),
        relax.Tuple([left, packed_right]),
        relax.TensorType(relax.ShapeExpr(list(out_shape)), "float32"),
    )


class _FreshExtents:
    """One variable of its own for each free extent, so that equal products share one kernel whatever their names."""

    def __init__(self) -> None:
        self._seen: list[tuple[Any, Any]] = []

    def of(self, extents: Any) -> list[Any]:
        return [self._extent(extent) for extent in extents]

    def _extent(self, extent: Any) -> Any:
        from tvm_ffi import structural_equal

        if constant(extent) is not None:
            return extent
        for known, variable in self._seen:
            if structural_equal(known, extent, map_free_vars=False):
                return variable
        variable = tirx.Var(f"extent{len(self._seen)}", "int64")
        self._seen.append((extent, variable))
        return variable


def call_dtype(tensor: Any) -> str:
    return str(tensor.ty.dtype)


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
