"""Powers: whole ones by multiplication, which is exact for integers."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.elementwise import elementwise, is_float, relax_operator
from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, Value, dtype_of, shape_of

Converter = Callable[..., Any]


def _pow(make: Maker, x: Value, exponent: Value) -> Any:
    from tvm import relax

    if not isinstance(exponent, (int, float)):
        if not is_float(make.out_dtype):
            raise Unsupported("powers of integers with an exponent that is no number")
        return elementwise(make, relax_operator("power"), x, exponent)
    base = make.as_tensor(x, make.work_dtype)
    if float(exponent).is_integer() and 0 <= exponent <= 64:
        return make.result(_whole_power(make, base, int(exponent)))
    if exponent == 0.5:
        return make.result(make.emit(relax.op.sqrt(base)))
    if not is_float(make.out_dtype):
        raise Unsupported(f"an integer to the power of {exponent}")
    if exponent == -0.5:
        return make.result(make.emit(relax.op.rsqrt(base)))
    if exponent == -1:
        return make.result(make.emit(relax.op.divide(make.constant(1, make.work_dtype), base)))
    return elementwise(make, relax_operator("power"), x, exponent)


def _whole_power(make: Maker, base: Any, exponent: int) -> Any:
    """By squaring: exact for integers, and for the 2 and 3 of activations cheaper than a logarithm."""
    from tvm import relax

    if exponent == 0:
        return make.full(shape_of(base), 1, dtype_of(base))
    made = None
    while exponent:
        if exponent & 1:
            made = base if made is None else make.emit(relax.op.multiply(made, base))
        exponent >>= 1
        base = make.emit(relax.op.multiply(base, base)) if exponent else base
    return made


POWERS: dict[str, Converter] = {
    **dict.fromkeys(("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar"), _pow),
    **dict.fromkeys(("aten.square.default",), lambda make, x: _pow(make, x, 2)),
}
