"""Recorded shapes with the free dimensions at given sizes."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, final

import torch
from torch import Tensor, fx

Shape = tuple[int, ...]


class SizedProgram(Protocol):
    """What a shape needs of a program."""

    graph: fx.Graph

    def concrete_size(self, size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
        """One size when the free dimensions take ``sizes``; TypeError when it depends on data."""


@final
class ConcreteShapes:
    """Shapes of values of one program at one set of sizes; None stands for a shape that depends on data.

    Few expressions are behind the many sizes of a graph; each is substituted once.
    """

    def __init__(self, program: SizedProgram, sizes: Mapping[str, int]) -> None:
        self._program, self._sizes = program, sizes
        self._known: dict[Any, int | None] = {}

    def of(self, node: object) -> Shape | None:
        """Shape of a node that stands for one tensor; None for everything else."""
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        return self.shape(value) if isinstance(value, Tensor) else None

    def shape(self, value: Tensor) -> Shape | None:
        """Shape of a recorded tensor."""
        found = [self._size(size) for size in value.shape]
        return None if None in found else tuple(size for size in found if size is not None)

    def _size(self, size: int | torch.SymInt) -> int | None:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in self._known:
            try:
                self._known[expression] = self._program.concrete_size(size, self._sizes)
            except TypeError:
                self._known[expression] = None
        return self._known[expression]


def recorded_tensors(node: fx.Node) -> tuple[Tensor, ...]:
    """The tensors that a node's recorded value holds: one, several of an operator with several results, or none."""
    return tuple(_tensors(node.meta.get("val")))


def is_view(node: fx.Node) -> bool:
    """Whether a node's value may share the memory of its first argument: views, and parts of several results."""
    return node.target is operator.getitem or bool(getattr(node.target, "is_view", False))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for part in value:
            yield from _tensors(part)
