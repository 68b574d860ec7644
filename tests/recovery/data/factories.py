"""What users put behind ``package.module:function`` as data: right and wrong."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

WALKS: list[int] = []


def numbered(count: int = 12, size: int = 4) -> Iterator[dict[str, Any]]:
    """Batch i holds the numbers from i * size on."""
    WALKS.append(count)
    for i in range(count):
        first = np.arange(i * size, (i + 1) * size)
        yield {"x": np.repeat(first[:, None], 3, 1).astype(np.float32), "label": first}


def pairs() -> list[tuple[torch.Tensor, list[int]]]:
    return [(torch.full((2, 3), float(i)), [i, i]) for i in range(4)]


def in_memory() -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(50, 3)}


def none() -> list[Any]:
    return []


def breaks() -> Iterator[dict[str, Any]]:
    yield {"x": np.zeros((2, 3), np.float32)}
    raise ValueError("the tokenizer is gone")


def number() -> int:
    return 3
