"""Dotted names of the leaves of a nested output."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any


def output_names(spec: Any) -> tuple[str, ...]:
    """One name per leaf of a pytree spec, in flattening order.

    A dictionary or a dataclass gives its keys, a named tuple its fields, a sequence its indices:
    ``logits``, ``past_key_values.0.1``. A bare leaf is ``output``; a bare sequence gives ``output.0``,
    because a number alone is no name.

    Args:
        spec: a ``torch.utils._pytree.TreeSpec``.
    """
    if spec.is_leaf():
        return ("output",)
    names = tuple(".".join(path) for path in _paths(spec))
    return tuple(f"output.{name}" if name[:1].isdigit() else name for name in names)


def is_bare(spec: Any) -> bool:
    """True when the model returned one tensor and no structure around it."""
    return bool(spec.is_leaf())


def _paths(spec: Any) -> Iterator[tuple[str, ...]]:
    children: Sequence[Any] = spec.children()
    if spec.is_leaf():
        yield ()
        return
    for key, child in zip(_keys(spec, len(children)), children, strict=True):
        for rest in _paths(child):
            yield (key, *rest)


def _keys(spec: Any, count: int) -> list[str]:
    # A dataclass registered with torch.export keeps [present fields, fields that are None] as its context.
    context = spec.context
    if dataclasses.is_dataclass(spec.type) and isinstance(context, (list, tuple)) and len(context) == 2:
        if isinstance(context[0], (list, tuple)) and len(context[0]) == count:
            return [str(k) for k in context[0]]
    fields = getattr(context, "_fields", None)
    if fields is not None and len(fields) == count:
        return [str(k) for k in fields]
    if isinstance(context, (list, tuple)) and len(context) == count and all(isinstance(k, str) for k in context):
        return [str(k) for k in context]
    return [str(i) for i in range(count)]
