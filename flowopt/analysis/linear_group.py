"""Linear layers of one input, by their sizes."""

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linear layers that read one value.

    Attributes:
        input_shape: of the value, features last, with the free dimensions at some size.
        outputs: features that each layer gives, in the order of the graph.
        dtype: of the value, the weights and the outputs.
        has_bias: whether any of the layers has a bias.
    """

    input_shape: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: torch.dtype
    has_bias: bool

    @property
    def rows(self) -> int:
        """How often the layers are applied: the product of all sizes but the features."""
        return prod(self.input_shape[:-1])

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.input_shape)), "+".join(map(str, self.outputs))
        return f"{' -> '.join(sizes)} {str(self.dtype).removeprefix('torch.')}{' with bias' if self.has_bias else ''}"
