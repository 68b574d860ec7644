"""Frozen results to JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any


def to_json(result: Any, *, indent: int | None = 2) -> str:
    """A result as JSON text: enums by value; NaN and infinities become ``nan``, ``inf`` and ``-inf`` in quotes."""
    return json.dumps(plain(result), indent=indent, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Dictionaries, lists, strings and numbers out of a frozen result."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
