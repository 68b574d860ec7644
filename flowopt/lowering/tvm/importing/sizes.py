"""Symbolic sizes of torch as expressions of TVM.

A size is a sympy expression over the symbols of the free dimensions. In TVM it is an int64 expression over one
variable per dimension; those variables stand in the shapes of the inputs, where a call binds them.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as torch_functions


class UnknownSize(Exception):
    """A size with a symbol that no input binds, or with a function that TVM has no integer form for."""


def size_expression(size: Any, variables: Mapping[str, Any]) -> Any:
    """A size as an int64 expression.

    Args:
        size: an int, a ``torch.SymInt`` or the sympy expression of one.
        variables: symbol name to ``tirx.Var``.

    Raises:
        UnknownSize: see there.
    """
    from tvm import tirx

    if isinstance(size, torch.SymInt):
        size = size.node.expr
    if isinstance(size, (int, sympy.Integer)):
        return tirx.IntImm("int64", int(size))
    if isinstance(size, sympy.Symbol):
        if str(size) not in variables:
            raise UnknownSize(f"the size {size} depends on the data")
        return variables[str(size)]
    if isinstance(size, sympy.Mul) and any(isinstance(part, sympy.Rational) and part.q != 1 for part in size.args):
        # n/2 where n is known to be even: the product first, so that the division is exact.
        return tirx.floordiv(*(size_expression(part, variables) for part in size.as_numer_denom()))
    return _call(size, [size_expression(part, variables) for part in size.args])


def number_expression(number: Any, variables: Mapping[str, Any]) -> Any:
    """A floating number made of sizes, such as ``length ** -0.5``, as a float64 expression.

    Args:
        number: a ``torch.SymFloat`` or the sympy expression of one.
        variables: symbol name to ``tirx.Var``.

    Raises:
        UnknownSize: see there.
    """
    from tvm import tirx

    if isinstance(number, torch.SymFloat):
        number = number.node.expr
    if isinstance(number, (sympy.Float, sympy.Rational)):
        return tirx.const(float(number), "float64")
    if number.is_integer:
        return tirx.Cast("float64", size_expression(number, variables))
    parts = [number_expression(part, variables) for part in number.args]
    if isinstance(number, torch_functions.ToFloat):
        return parts[0]
    if isinstance(number, sympy.Add):
        return reduce(lambda a, b: a + b, parts)
    if isinstance(number, sympy.Mul):
        return reduce(lambda a, b: a * b, parts)
    if isinstance(number, (torch_functions.IntTrueDiv, torch_functions.FloatTrueDiv)):
        return parts[0] / parts[1]
    if isinstance(number, (torch_functions.FloatPow, sympy.Pow)):
        return tirx.power(*parts)
    if isinstance(number, torch_functions.OpaqueUnaryFn_sqrt):
        return tirx.sqrt(parts[0])
    raise UnknownSize(f"the number {number} has no form")


def _call(size: Any, parts: list[Any]) -> Any:
    from tvm import tirx

    if isinstance(size, sympy.Add):
        return reduce(lambda a, b: a + b, parts)
    if isinstance(size, sympy.Mul):
        return reduce(lambda a, b: a * b, parts)
    if isinstance(size, sympy.Pow) and size.exp.is_Integer and int(size.exp) > 0:
        return reduce(lambda a, b: a * b, [parts[0]] * int(size.exp))
    if isinstance(size, (torch_functions.FloorDiv, torch_functions.CleanDiv)):
        return tirx.floordiv(parts[0], parts[1])
    if isinstance(size, (torch_functions.Mod, torch_functions.PythonMod, sympy.Mod)):
        return tirx.floormod(parts[0], parts[1])
    if isinstance(size, torch_functions.CeilDiv):
        return tirx.floordiv(parts[0] + parts[1] - 1, parts[1])
    if isinstance(size, (torch_functions.Max, sympy.Max)):
        return reduce(tirx.max, parts)
    if isinstance(size, (torch_functions.Min, sympy.Min)):
        return reduce(tirx.min, parts)
    raise UnknownSize(f"the size {size} has no integer form")
