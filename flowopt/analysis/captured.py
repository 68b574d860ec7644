"""A captured program, as analysis sees it: it knows graphs, and what to ask a program for."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, fx


class HasSize(Protocol):
    """A free dimension: its range (inclusive; no maximum is None) and its size in the example."""

    @property
    def name(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def minimum(self) -> int: ...
    @property
    def maximum(self) -> int | None: ...
    @property
    def traced(self) -> int: ...


class Captured(Protocol):
    """What ``flowopt.program.Program`` has of a program."""

    @property
    def graph(self) -> fx.Graph: ...
    @property
    def dims(self) -> Sequence[HasSize]: ...
    @property
    def example(self) -> Mapping[str, Tensor]: ...

    def read(self, name: str) -> Tensor:
        """The stored tensor of a name."""

    def concrete_size(self, size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
        """One size when the free dimensions take ``sizes``; TypeError when it depends on data."""
