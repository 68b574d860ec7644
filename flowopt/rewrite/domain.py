"""Domain: where an EXACT_ON_DOMAIN rewrite is exact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Domain:
    """Inputs of a program on which a rewrite is exact. Outside it, the rewrite fails or gives the same.

    An assertion whose value nobody reads is removed as unused: what fails must be read by the result.

    Attributes:
        description: in words, such as ``every row of mask shows a position``.
        contains: whether inputs lie in it.
        edge: given ordinary inputs, inputs that are just inside.
        outside: given ordinary inputs, inputs that are just outside: the negative case.
    """

    description: str
    contains: Callable[[Inputs], bool]
    edge: Callable[[Inputs], Inputs]
    outside: Callable[[Inputs], Inputs]
