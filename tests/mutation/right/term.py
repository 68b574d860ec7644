"""Terms: formulas written with operators that become nodes of the graph under edit."""

from dataclasses import dataclass
from typing import Any, TypeGuard, Union

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.rewrite import Edit

aten = torch.ops.aten
Operand = Union["Term", float]


@dataclass(frozen=True, slots=True)
class Term:
    """A node, with arithmetic. Every operation adds a call before the edit's current point."""

    edit: Edit
    node: fx.Node

    def op(self, target: Any, *args: Any, **kwargs: Any) -> "Term":
        """``target(self, *args)``; terms among the arguments, also in lists, are taken as their nodes."""
        return call(self.edit, target, self, *args, **kwargs)

    def __add__(self, other: Operand) -> "Term":
        return self.op(aten.add.Tensor, other)

    def __sub__(self, other: Operand) -> "Term":
        return self.op(aten.sub.Tensor, other)

    def __mul__(self, other: Operand) -> "Term":
        return self.op(aten.mul.Tensor, other)

    def __truediv__(self, other: Operand) -> "Term":
        return self.op(aten.div.Tensor, other)

    def __matmul__(self, other: "Term") -> "Term":
        return self.op(aten.matmul.default, other)

    def __neg__(self) -> "Term":
        return self.op(aten.neg.default)

    def mean(self, axis: int = -1) -> "Term":
        """Mean over one axis, which stays with size 1."""
        return self.op(aten.mean.dim, [axis], True)

    def total(self, axis: int = -1) -> "Term":
        """Sum over one axis, which stays with size 1."""
        return self.op(aten.sum.dim_IntList, [axis], True)

    def part(self, axis: int, start: int, end: int = 2**62, step: int = 1) -> "Term":
        """A slice of one axis."""
        return self.op(aten.slice.Tensor, axis, start, end, step)

    def transposed(self) -> "Term":
        """The last two axes swapped."""
        return self.op(aten.transpose.int, -2, -1)

    def reshaped(self, shape: list[Any]) -> "Term":
        """Another shape; sizes are numbers or terms."""
        return self.op(aten.reshape.default, shape)

    def contiguous(self) -> "Term":
        """A copy in the usual layout."""
        return self.op(aten.clone.default, memory_format=torch.contiguous_format)

    @property
    def rank(self) -> int:
        value = recorded_tensor(self.node)
        assert value is not None
        return value.dim()

    def size(self, axis: int) -> Any:
        """A number where the size is known at capture, else the term that reads it."""
        known = static_size(self.node, axis)
        return self.op(aten.sym_size.int, axis % self.rank) if known is None else known

    def shape(self) -> list[Any]:
        """All sizes."""
        return [self.size(axis) for axis in range(self.rank)]

    def value(self) -> Tensor:
        """In float64, of a parameter-only node."""
        return self.edit.constant(self.node)

    def stored(self, value: Tensor) -> "Term":
        """A new stored tensor with this one's dtype."""
        return Term(self.edit, self.edit.parameter(f"{self.node.name}_rewritten", value, like=self.node))


def call(edit: Edit, target: Any, *args: Any, **kwargs: Any) -> Term:
    """A call with terms among its arguments, also in lists."""
    plain_args, plain_kwargs = fx.node.map_aggregate((args, kwargs), _plain)
    return Term(edit, edit.call(target, *plain_args, **plain_kwargs))


def joined(parts: list[Term], axis: int) -> Term:
    """Terms concatenated along an axis."""
    return call(parts[0].edit, aten.cat.default, parts, axis)


def raw_arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of a call by name, defaults included."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    names = target._schema.arguments
    given = dict(zip((a.name for a in names), node.args, strict=False))
    return {a.name: a.default_value for a in names} | given | dict(node.kwargs)


def arguments(edit: Edit, node: fx.Node) -> dict[str, Any]:
    """Every argument of a call by name; nodes as terms."""
    return {name: Term(edit, a) if isinstance(a, fx.Node) else a for name, a in raw_arguments(node).items()}


def is_stored(*nodes: Any) -> bool:
    """True when every argument is a node that depends on stored tensors alone."""
    return all(isinstance(n, fx.Node) and is_parameter_only(n) for n in nodes)


def is_call(node: Any, *targets: Any) -> TypeGuard[fx.Node]:
    """True for a call of one of the operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_float(node: Any) -> bool:
    """True for a node that yields a floating tensor."""
    value = recorded_tensor(node)
    return value is not None and value.is_floating_point()


def is_number(value: Any) -> bool:
    """True for a number written in the program, and not zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value != 0


def _plain(value: Any) -> Any:
    return value.node if isinstance(value, Term) else value
