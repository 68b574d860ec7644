"""What an operator gives when a float that it reads lies on the other side of a boundary.

Every flip gets the node, what is known of the values that it reads, and its result in the oracle. It gives the result
with every undecided element taken the other way, and how many elements those are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from flowopt.ir.evaluate import Value
from flowopt.ir.metadata import recorded_tensor

# A value is rounded a few times before it decides, however little the runs that are known happened to show.
ROUNDINGS: Final = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """A deciding value in float64, and by how much rounding may move it; zero where it is exact in every run."""

    oracle: Tensor
    tolerance: Tensor


Flip = Callable[[fx.Node, Mapping[str, Seen], Any], tuple[Value, int]]


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument by its name in the operator's schema, wherever it stands."""
    if name in node.kwargs:
        return node.kwargs[name]
    target: Any = node.target
    names = [a.name for a in target._schema.arguments]
    at = names.index(name) if name in names else len(node.args)
    return node.args[at] if at < len(node.args) else default


def operand(node: fx.Node, name: str, seen: Mapping[str, Seen]) -> Seen:
    """What is known of an argument; numbers are exact."""
    given = argument(node, name)
    if isinstance(given, fx.Node):
        return seen[given.name]
    number = torch.tensor(float(given), dtype=torch.float64)
    return Seen(number, torch.zeros_like(number))


def compared(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """A comparison of two values."""
    left, right = operand(node, "self", seen), operand(node, "other", seen)
    undecided = (left.oracle - right.oracle).abs() < left.tolerance + right.tolerance
    return torch.where(undecided, ~result, result), int(undecided.sum())


def rounded(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """Floor, ceil, trunc and round, and the fraction that trunc leaves."""
    how = str(node.target).split(".")[1]
    undecided, step = _crossed(operand(node, "self", seen), {"fix": "trunc", "frac": "trunc"}.get(how, how))
    other = result - step if how == "frac" else result + step
    return torch.where(undecided, other, result), int(undecided.sum())


def rounded_to_decimals(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """A round that keeps some decimals."""
    source, scale = operand(node, "self", seen), 10.0 ** int(argument(node, "decimals", 0))
    undecided, step = _crossed(_inexact(node, source.oracle * scale, source.tolerance * scale), "round")
    return torch.where(undecided, result + step / scale, result), int(undecided.sum())


def divided(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """A quotient that is rounded to a whole number."""
    how = argument(node, "rounding_mode", "floor")
    if how is None:
        return result, 0
    undecided, step = _crossed(_quotient(node, seen), str(how))
    return torch.where(undecided, result + step, result), int(undecided.sum())


def remaindered(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """What a quotient that is rounded to a whole number leaves: it jumps by the divisor."""
    how = "trunc" if "fmod" in str(node.target) else "floor"
    undecided, step = _crossed(_quotient(node, seen), how)
    other = result - step * operand(node, "other", seen).oracle
    return torch.where(undecided, other, result), int(undecided.sum())


def cast(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """A cast to integers cuts the fraction off; one to booleans asks for zero."""
    if result.dtype is torch.bool:
        return signed(node, seen, result)
    undecided, step = _crossed(operand(node, "self", seen), "trunc")
    return torch.where(undecided, result + step.to(result.dtype), result), int(undecided.sum())


def signed(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """What zero separates: signs, and whether a number is zero at all."""
    name = str(node.target).split(".")[1]
    source = operand(node, "other" if name == "copysign" else "self", seen)
    undecided = source.oracle.abs() < source.tolerance
    if result.dtype is torch.bool:
        other = ~result
    elif name == "heaviside":
        other = torch.where(result == 0, 1.0, 0.0)
    else:
        other = torch.where(result == 0, 1.0, -result)
    return torch.where(undecided, other, result), int(undecided.sum())


def thresholded(node: fx.Node, seen: Mapping[str, Seen], result: Tensor) -> tuple[Value, int]:
    """A number above a threshold, another one in its place below it."""
    source, bound = operand(node, "self", seen), operand(node, "threshold", seen).oracle
    undecided = (source.oracle - bound).abs() < source.tolerance
    other = torch.where(source.oracle > bound, operand(node, "value", seen).oracle, source.oracle)
    return torch.where(undecided, other, result), int(undecided.sum())


def _quotient(node: fx.Node, seen: Mapping[str, Seen]) -> Seen:
    above, below = operand(node, "self", seen), operand(node, "other", seen)
    quotient = above.oracle / below.oracle
    return _inexact(node, quotient, (above.tolerance + quotient.abs() * below.tolerance) / below.oracle.abs())


def _inexact(node: fx.Node, value: Tensor, tolerance: Tensor) -> Seen:
    """A value that the operator itself computes and rounds; whole numbers out of exact ones are exact."""
    recorded = recorded_tensor(node)
    dtype = recorded.dtype if recorded is not None and recorded.is_floating_point() else torch.float32
    rounding = ROUNDINGS * torch.finfo(dtype).eps / 2 * value.abs()
    is_exact = (tolerance == 0) & (value == value.round())
    return Seen(value, torch.where(is_exact, 0.0, tolerance + rounding))


def _crossed(source: Seen, how: str) -> tuple[Tensor, Tensor]:
    """Where the nearest boundary is closer than the tolerance, and the step of the whole number behind it."""
    value, halfway = source.oracle, 0.5 if how == "round" else 0.0
    boundary = torch.round(value - halfway) + halfway
    if how == "trunc":
        # Both sides of zero give zero.
        boundary = torch.where(boundary == 0, torch.where(value < 0, -1.0, 1.0), boundary)
    if how == "round":
        rises = torch.round(value) <= value
    elif how == "ceil":
        rises = value <= boundary
    elif how == "trunc":
        rises = torch.where(value < 0, value <= boundary, value < boundary)
    else:
        rises = value < boundary
    return (value - boundary).abs() < source.tolerance, torch.where(rises, 1.0, -1.0).to(value.dtype)
