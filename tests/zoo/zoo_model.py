"""The type of a zoo model."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One model in eval mode, with what it takes to export it.

    Attributes:
        module: freshly built, so that a test may change it.
        kwargs: example inputs and constants by name. Their dynamic sizes differ from each other and from the
            module's own sizes, so that an axis that was specialised or mixed up shows.
        dynamic: input name -> {axis: dimension name}; an input that is not here is static.
        dims: dimension name -> (minimum, maximum), both included.
    """

    name: str
    module: nn.Module
    kwargs: dict[str, Tensor | bool]
    dynamic: dict[str, dict[int, str]]
    dims: dict[str, tuple[int, int]]
