"""The matrix products and convolutions of a program at given sizes: what its speed is bounded by."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from flowopt.analysis.concrete_shapes import ConcreteShapes, SizedProgram
from flowopt.analysis.flops import is_product, node_flops


@dataclass(frozen=True, slots=True)
class Product:
    """Calls of one operator at one set of shapes.

    Attributes:
        operator: name below ``torch.ops``, as ``aten.linear.default``.
        arguments: of the call, by position; a tensor is its shape in a ``Shaped``.
        keywords: the same by name.
        count: how many calls of this kind one run makes.
        flop: of one call, two per multiply-add.
        moved_bytes: operands and results of one call.
    """

    operator: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    count: int
    flop: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class Shaped:
    """A tensor argument."""

    shape: tuple[int, ...]
    dtype: str


def products(program: SizedProgram, sizes: Mapping[str, int]) -> tuple[Product, ...]:
    """Every product whose shapes are known, equal ones counted together.

    Args:
        program: whose graph is read.
        sizes: every free dimension by name.
    """
    shapes = ConcreteShapes(program, sizes)
    found: Counter[Product] = Counter()
    for node in program.graph.nodes:
        one = _product(node, shapes) if is_product(node) else None
        if one is not None:
            found[one] += 1
    return tuple(
        Product(p.operator, p.arguments, p.keywords, count, p.flop, p.moved_bytes) for p, count in found.items()
    )


def _product(node: fx.Node, shapes: ConcreteShapes) -> Product | None:
    flop = node_flops(node, shapes)
    output = node.meta.get("val")
    result = shapes.of(node)
    if flop is None or result is None or not isinstance(output, Tensor):
        return None
    try:
        arguments = tuple(_plain(argument, shapes) for argument in node.args)
        keywords = tuple((name, _plain(value, shapes)) for name, value in node.kwargs.items())
    except LookupError:
        return None
    read = sum(
        prod(found) * tensor.element_size()
        for found, tensor in ((shapes.of(n), n.meta["val"]) for n in node.all_input_nodes)
        if found is not None
    )
    moved = read + prod(result) * output.element_size()
    return Product(str(node.target), arguments, keywords, 1, flop, moved)


def _plain(argument: Any, shapes: ConcreteShapes) -> Any:
    if isinstance(argument, (list, tuple)):
        return tuple(_plain(one, shapes) for one in argument)
    if not isinstance(argument, fx.Node):
        return argument
    shape = shapes.of(argument)
    if shape is None:
        raise LookupError(argument.name)
    return Shaped(shape, str(argument.meta["val"].dtype).removeprefix("torch."))
