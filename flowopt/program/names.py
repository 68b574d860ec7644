"""Dotted names of the leaves of a nested output."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
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
    names = (".".join(path) for path in _paths(spec))
    return _distinct(f"output.{name}" if name[:1].isdigit() else name for name in names)


def is_bare(spec: Any) -> bool:
    """True when the model returned one tensor and no structure around it."""
    return bool(spec.is_leaf())


def _paths(spec: Any) -> Iterator[tuple[str, ...]]:
    children: Sequence[Any] = spec.children()
    if spec.is_leaf():
        yield ()
        return
    for key, child in zip(child_keys(spec), children, strict=True):
        for rest in _paths(child):
            yield (key, *rest)


def child_keys(spec: Any) -> list[str]:
    """One key per child of a pytree spec: dictionary key, field name, or index."""
    count = len(spec.children())
    context = spec.context
    if isinstance(context, (list, tuple)) and context and isinstance(context[0], (list, tuple)):
        # A dataclass registered with torch.export keeps [present fields, fields that are None].
        context = context[0] if dataclasses.is_dataclass(spec.type) else context
    if spec.type is defaultdict:
        context = context[1]  # the factory stands before the keys
    keys = getattr(context, "_fields", context)
    if isinstance(keys, (list, tuple)) and len(keys) == count and all(isinstance(k, (str, int)) for k in keys):
        return [str(k) for k in keys]
    return [str(i) for i in range(count)]


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The same names with ``_2`` and so on where one occurs again: ``{"a.b": x, "a": {"b": y}}``."""
    found: list[str] = []
    for name in names:
        number, candidate = 2, name
        while candidate in found:
            candidate, number = f"{name}_{number}", number + 1
        found.append(candidate)
    return tuple(found)
