"""Division with a rounding, and remainders, with torch's signs."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.elementwise import elementwise, is_float, relax_operator
from flowopt.lowering.tvm.importing.maker import Maker, Value

Converter = Callable[..., Any]


def _div_mode(make: Maker, x: Value, other: Value, rounding_mode: str | None) -> Any:
    if rounding_mode is None:
        return elementwise(make, relax_operator("divide"), x, other)
    if rounding_mode == "floor":
        return _floor_divide(make, x, other)
    if is_float(make.out_dtype):
        return elementwise(make, lambda a, b: relax_operator("trunc")(relax_operator("divide")(a, b)), x, other)
    return _pairwise(make, _whole_quotient("truncdiv"), x, other)


def _floor_divide(make: Maker, x: Value, other: Value) -> Any:
    if not is_float(make.out_dtype):
        return _pairwise(make, _whole_quotient("floordiv"), x, other)

    def quotient(tirx: Any, a: Any, b: Any) -> Any:
        # Through the remainder, as torch does: floor(a / b) is one too high where a / b rounds up to an integer.
        rest = _rest(tirx, a, b)
        zero, one = tirx.const(0, a.ty.dtype), tirx.const(1, a.ty.dtype)
        exact = (a - rest) / b - tirx.Select(_is_opposite(tirx, rest, b), one, zero)
        down = tirx.floor(exact)
        return tirx.Select(b == zero, a / b, down + tirx.Select(exact - down > one / 2, one, zero))

    return _pairwise(make, quotient, x, other)


def _remainder(make: Maker, x: Value, other: Value) -> Any:
    if not is_float(make.out_dtype):
        return _pairwise(make, lambda tirx, a, b: tirx.floormod(a, _divisor(tirx, b)), x, other)

    def remainder(tirx: Any, a: Any, b: Any) -> Any:
        rest = _rest(tirx, a, b)
        return rest + tirx.Select(_is_opposite(tirx, rest, b), b, tirx.const(0, a.ty.dtype))

    return _pairwise(make, remainder, x, other)


def _fmod(make: Maker, x: Value, other: Value) -> Any:
    if is_float(make.out_dtype):
        return _pairwise(make, _rest, x, other)
    return _pairwise(make, lambda tirx, a, b: tirx.truncmod(a, _divisor(tirx, b)), x, other)


def _divisor(tirx: Any, b: Any) -> Any:
    """An integer divisor with 1 for those that the processor traps on: 0, and -1 under the lowest integer.

    torch raises for a division by 0; a compiled kernel cannot, and must not end the process.
    """
    dtype = str(b.ty.dtype)
    one = tirx.const(1, dtype)
    traps = b == tirx.const(0, dtype)
    if not dtype.startswith("uint"):
        traps = tirx.any(traps, b == tirx.const(-1, dtype))
    return tirx.Select(traps, one, b)


def _whole_quotient(name: str) -> Callable[..., Any]:
    def quotient(tirx: Any, a: Any, b: Any) -> Any:
        dtype = str(b.ty.dtype)
        found = getattr(tirx, name)(a, _divisor(tirx, b))
        if dtype.startswith("uint"):
            return found
        return tirx.Select(b == tirx.const(-1, dtype), tirx.const(0, dtype) - a, found)

    return quotient


def _is_opposite(tirx: Any, rest: Any, divisor: Any) -> Any:
    zero = tirx.const(0, rest.ty.dtype)
    return tirx.any(tirx.all(rest > zero, divisor < zero), tirx.all(rest < zero, divisor > zero))


def _rest(tirx: Any, a: Any, b: Any) -> Any:
    """The C library's ``fmod``: TVM's intrinsic of that name has no lowering for LLVM."""
    dtype = str(a.ty.dtype)
    return tirx.call_pure_extern(dtype, "fmodf" if dtype == "float32" else "fmod", a, b)


def _pairwise(make: Maker, function: Callable[..., Any], x: Value, other: Value) -> Any:
    """A function of two elements that Relax has no operator for, in one loop nest."""
    from tvm import tirx

    operands = [make.as_tensor(v, make.work_dtype) for v in (x, other)]
    left, right = (make.broadcast(v, make.out_shape) for v in operands)
    made = make.compute(make.out_shape, lambda i, _, a, b: function(tirx, a(*i), b(*i)), left, right, name="pairwise")
    return make.result(made)


DIVISION: dict[str, Converter] = {
    **dict.fromkeys(("aten.div.Tensor_mode", "aten.div.Scalar_mode"), _div_mode),
    **dict.fromkeys(("aten.floor_divide.default", "aten.floor_divide.Scalar"), _floor_divide),
    **dict.fromkeys(("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor"), _remainder),
    **dict.fromkeys(("aten.fmod.Tensor", "aten.fmod.Scalar"), _fmod),
}
