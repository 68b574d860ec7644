"""Lowering of exp, tanh, erf, sigmoid and pow for LLVM targets, which else call the C library once per element."""

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx
from tvm.tirx import register_intrin_lowering

from flowopt.lowering.tvm.cpu.polynomials import Steps, error_function, exponential, hyperbolic_tangent, logistic

FUNCTIONS: dict[str, Callable[[Steps, Any], Any]] = {
    "tirx.exp": exponential,
    "tirx.tanh": hyperbolic_tangent,
    "tirx.erf": error_function,
    "tirx.sigmoid": logistic,
}
# Above the level of the rules that TVM registers for LLVM.
LEVEL = 99


@cache
def register_vector_math() -> None:
    """Installs the lowerings, once in a process. They change float32 and 16-bit floats alone."""
    for name, function in FUNCTIONS.items():
        register_intrin_lowering(name, target="llvm", f=_rule(name, function), level=LEVEL)


def _rule(name: str, function: Callable[[Steps, Any], Any]) -> Callable[[Any], Any]:
    def lowered(call: Any) -> Any:
        (x,) = call.args
        scalar = str(call.ty.dtype).split("x")[0]
        if scalar == "float32":
            return _applied(function, x)
        if scalar in ("float16", "bfloat16"):
            wide = x.astype(str(x.ty.dtype).replace(scalar, "float32"))
            return _applied(function, wide).astype(str(x.ty.dtype))
        return _double(name, call)

    return lowered


def _applied(function: Callable[[Steps, Any], Any], x: Any) -> Any:
    steps = Steps()
    return steps.closed(function(steps, x))


def _double(name: str, call: Any) -> Any:
    (x,) = call.args
    if name == "tirx.sigmoid":
        one = tirx.const(1.0, str(x.ty.dtype))
        return one / (one + tirx.exp(-x))
    return tirx.call_pure_extern(call.ty, name.removeprefix("tirx."), x)
