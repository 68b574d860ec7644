"""exp, tanh, erf and sigmoid of float32 as arithmetic that vectorises.

    exp(x)     = 2^n exp(r)              n = round(x / ln 2), r = x - n ln 2, |r| <= ln(2) / 2
    erf(x)     = x + x Q(x^2)            |x| <= 1;   sign(x) (1 - exp(L(|x|))) beyond, L close to ln erfc
    tanh(x)    = x + x^3 T(x^2)          |x| <= 0.625;   sign(x) (1 - 2 / (exp(2 |x|) + 1)) beyond
    sigmoid(x) = 1 / (1 + exp(-x))

exp, erf and tanh are within 1.5 units in the last place of the exact value and sigmoid within 2.5, subnormal results of
exp included; infinities and NaN give what they give in IEEE arithmetic. The polynomials are fits in float64.

Source of the range reduction: Cody and Waite, "Software Manual for the Elementary Functions", 1980.
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx

# Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum.
ROUNDING = 12582912.0
ROUNDING_BITS = 0x4B400000
# ln 2 in two parts: n times the first is exact for every n that occurs.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP = (0.50000001, 0.166665129, 0.0416661873, 0.00836959824, 0.0013951719)
ERF = (0.128379166, -0.376126271, 0.112836002, -0.0268544446, 0.00518953544, -0.000802084219, 7.88912257e-05)
LOG_ERFC = (
    0.000170550913,
    -1.12949515,
    -0.633386659,
    -0.108236605,
    0.0250914867,
    -0.00416052293,
    0.000432302114,
    -2.09094738e-05,
)
TANH = (-0.333333297, 0.133331625, -0.0539411291, 0.0216693616, -0.00809917737, 0.00207102064)


class Steps:
    """Values that are computed once and read by name, in order."""

    def __init__(self) -> None:
        self._bound: list[tuple[Any, Any]] = []

    def keep(self, value: Any) -> Any:
        """A variable that holds the value."""
        if str(value.ty.dtype).startswith("float"):
            # The simplifier would put a pure value in the place of each reader, which is exponential in the length of
            # the chain. value * 1 - 0 as a call into LLVM is opaque to it, and LLVM removes it.
            value = tirx.call_llvm_intrin(value.ty, "llvm.fmuladd", value, _like(value, 1.0), _like(value, -0.0))
        variable = tirx.Var("value", value.ty)
        self._bound.append((variable, value))
        return variable

    def closed(self, result: Any) -> Any:
        """The result as one expression.

        No binding stands inside the value of another: the lowering visits such values twice, which doubles with depth.
        """
        for variable, value in reversed(self._bound):
            result = tirx.Let(variable, value, result)
        return result


def exponential(steps: Steps, x: Any) -> Any:
    """exp of a float32 scalar or vector."""
    # Beyond these bounds the result is 0 or infinity. The bounds stand first, because max and min of a NaN are the
    # second operand.
    x = steps.keep(tirx.min(_like(x, 89.0), tirx.max(_like(x, -104.0), x)))
    shifted = steps.keep(x * _like(x, 1.44269504) + _like(x, ROUNDING))
    count = steps.keep(shifted - _like(x, ROUNDING))
    r = steps.keep(x - count * _like(x, LN2_HIGH) - count * _like(x, LN2_LOW))
    n = steps.keep(tirx.reinterpret(_with(x, "int32"), shifted) - _like(x, ROUNDING_BITS, "int32"))
    # In two steps, because 2^n alone leaves the range of float32 where the result is subnormal or close to the end.
    half = steps.keep(tirx.shift_right(n, _like(n, 1, "int32")))
    mantissa = _polynomial(EXP, r) * (r * r) + r + _like(r, 1.0)
    return steps.keep(mantissa * _power_of_two(half) * _power_of_two(n - half))


def error_function(steps: Steps, x: Any) -> Any:
    """erf of a float32 scalar or vector."""
    x = steps.keep(x)
    square = steps.keep(x * x)
    near = steps.keep(x + x * _polynomial(ERF, square))
    # erf is 1 from 3.92 on, in float32.
    size = steps.keep(tirx.min(_like(x, 4.0), tirx.abs(x)))
    far = steps.keep(_like(x, 1.0) - exponential(steps, _polynomial(LOG_ERFC, size)))
    return tirx.Select(size > _like(x, 1.0), _with_sign_of(x, far), near)


def hyperbolic_tangent(steps: Steps, x: Any) -> Any:
    """tanh of a float32 scalar or vector."""
    x = steps.keep(x)
    square = steps.keep(x * x)
    near = steps.keep(x + x * square * _polynomial(TANH, square))
    size = steps.keep(tirx.abs(x))
    far = steps.keep(_like(x, 1.0) - _like(x, 2.0) / (exponential(steps, size + size) + _like(x, 1.0)))
    return tirx.Select(size > _like(x, 0.625), _with_sign_of(x, far), near)


def logistic(steps: Steps, x: Any) -> Any:
    """1 / (1 + exp(-x)) of a float32 scalar or vector; 0 where exp(-x) overflows, from -88.73 on."""
    return _like(x, 1.0) / (_like(x, 1.0) + exponential(steps, _like(x, 0.0) - x))


def _with_sign_of(x: Any, size: Any) -> Any:
    return tirx.call_llvm_pure_intrin(size.ty, "llvm.copysign", size, x)


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    result = _like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + _like(x, coefficient)
    return result


def _power_of_two(n: Any) -> Any:
    biased = tirx.shift_left(n + _like(n, 127, "int32"), _like(n, 23, "int32"))
    return tirx.reinterpret(_with(n, "float32"), biased)


def _with(x: Any, dtype: str) -> str:
    lanes = x.ty.dtype.lanes
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _like(x: Any, value: float, dtype: str = "float32") -> Any:
    scalar = tirx.const(value, dtype)
    lanes = x.ty.dtype.lanes
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)
