"""Carry a plan from one copy of a program to another."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, fx

from flowopt.errors import InternalError

T = TypeVar("T")


def transfer(plan: T, nodes: Mapping[str, fx.Node]) -> T:
    """The same plan with every node replaced by its namesake.

    Walks frozen dataclasses, tuples, lists and dictionaries. A plan holds decisions only, so a tensor in it
    is an error of the pass: it would carry float32 values into the float64 twin.

    Args:
        plan: what ``check`` returned.
        nodes: node name to node, of the other copy.

    Raises:
        InternalError: a tensor in the plan, or a node that the other copy lacks.
    """
    return _transferred(plan, nodes)  # type: ignore[no-any-return]  # the walk keeps the type


def _transferred(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, fx.Node):
        if value.name not in nodes:
            raise InternalError(f"the copy has no node {value.name!r}")
        return nodes[value.name]
    if isinstance(value, Tensor):
        raise InternalError(
            "a plan holds a tensor; plans hold decisions, and rewrite computes tensors from the program"
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _transferred(getattr(value, f.name), nodes) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_transferred(v, nodes) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_transferred(v, nodes) for v in value)
    if isinstance(value, dict):
        return {_transferred(k, nodes): _transferred(v, nodes) for k, v in value.items()}
    return value
