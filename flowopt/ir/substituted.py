"""Symbolic sizes with their symbols replaced."""

from collections.abc import Mapping

import sympy
import torch


def substituted(size: torch.SymInt, values: Mapping[str, int] | Mapping[str, str]) -> sympy.Expr:
    """A symbolic size as an expression, its symbols replaced by number or by name.

    Symbols are matched by name: those of a graph carry assumptions and equal no fresh one.
    """
    expression = size.node.expr
    return expression.xreplace({s: _sympy_value(values[s.name]) for s in expression.free_symbols if s.name in values})


def _sympy_value(value: int | str) -> sympy.Expr:
    return sympy.Integer(value) if isinstance(value, int) else sympy.Symbol(value)
