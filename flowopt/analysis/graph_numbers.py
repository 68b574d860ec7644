"""The numbers that a graph names: bounds it compares with, scales it divides by, ids it treats in a way of their own,
and what its sizes are divided by.

A random input hardly ever equals one of them, and what a rewrite makes of exactly that number stays unseen.
"""

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, fx

from flowopt.ir.constants import constant_value, is_parameter_only
from flowopt.ir.metadata import recorded_tensor

# A larger stored tensor is a weight, not a list of bounds.
_MOST_STORED: Final = 64
# A number in the place of a tensor is one operand of an operator that takes both.
_NUMBER_TYPES: Final = ("NumberType", "FloatType", "TensorType")
_SIZE_ARITHMETIC: Final = {operator.floordiv, operator.mod, operator.truediv, operator.mul, operator.add, operator.sub}
T = TypeVar("T", int, float)
_aten = torch.ops.aten
_READS_BOUNDS: Final = {
    _aten.bucketize.Tensor,
    _aten.searchsorted.Tensor,
    *(getattr(_aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    _aten.mul.Tensor,
    _aten.div.Tensor,
    _aten.div.Tensor_mode,
    _aten.isin.Tensor_Tensor,
}


@dataclass(frozen=True, slots=True)
class GraphNumbers:
    """Finite numbers other than zero, sorted, each once.

    Attributes:
        floats: from operators that read floating numbers.
        integers: from operators that read integers.
        sizes: from arithmetic with sizes; larger than 1.
    """

    floats: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.floats or self.integers or self.sizes)

    def __or__(self, other: "GraphNumbers") -> "GraphNumbers":
        return GraphNumbers(
            _sorted({*self.floats, *other.floats}),
            _sorted({*self.integers, *other.integers}),
            _sorted({*self.sizes, *other.sizes}),
        )

    def __sub__(self, other: "GraphNumbers") -> "GraphNumbers":
        return GraphNumbers(
            _sorted({*self.floats} - {*other.floats}),
            _sorted({*self.integers} - {*other.integers}),
            _sorted({*self.sizes} - {*other.sizes}),
        )


def graph_numbers(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> GraphNumbers:
    """Scalars in operator arguments, and elements of small stored tensors that are compared or multiplied with.

    Args:
        graph: functional ATen graph.
        tensors: its stored tensors by name.
    """
    floats: set[float] = set()
    integers: set[int] = set()
    sizes: set[int] = set()
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), (int, torch.SymInt)):
            sizes.update(n for n in node.args if isinstance(n, int) and n > 1 and node.target in _SIZE_ARITHMETIC)
        elif node.op == "call_function":
            values = (*_scalars(node), *_stored(node, tensors))
            if _reads_floats(node):
                floats.update(map(float, values))
            else:
                integers.update(int(v) for v in values if float(v).is_integer())
    return GraphNumbers(_sorted(floats), _sorted(integers), _sorted(sizes))


def _sorted(numbers: set[T]) -> tuple[T, ...]:
    return tuple(sorted(numbers))


def _scalars(node: fx.Node) -> Iterator[float]:
    schema = getattr(node.target, "_schema", None)
    for at, argument in enumerate(schema.arguments if schema is not None else ()):
        given: Any = node.kwargs.get(argument.name, node.args[at] if at < len(node.args) else None)
        if isinstance(given, (int, float)) and not isinstance(given, bool) and _is_number(argument.type):
            yield from _useful(given)


def _is_number(kind: Any) -> bool:
    """True for the type of a scalar, and False for that of a size, an axis or a flag."""
    kind = kind.getElementType() if kind.kind() == "OptionalType" else kind
    return kind.kind() in _NUMBER_TYPES


def _stored(node: fx.Node, tensors: Mapping[str, Tensor]) -> Iterator[float]:
    if node.target not in _READS_BOUNDS:
        return
    for source in node.all_input_nodes:
        value = recorded_tensor(source)
        if value is None or value.is_complex() or not _is_short(value) or not is_parameter_only(source):
            continue
        for number in constant_value(source, tensors.__getitem__, raised=False).flatten().tolist():
            yield from _useful(number)


def _is_short(value: Tensor) -> bool:
    return all(isinstance(size, int) for size in value.shape) and value.numel() <= _MOST_STORED


def _useful(value: float) -> Iterator[float]:
    if math.isfinite(value) and value != 0:
        yield value


def _reads_floats(node: fx.Node) -> bool:
    values = [recorded_tensor(n) for n in node.all_input_nodes if n.op != "get_attr"]
    return any(value is not None and value.is_floating_point() for value in values)
