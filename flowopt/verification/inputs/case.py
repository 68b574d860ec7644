"""Case: one set of inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs.

    Attributes:
        name: what it stands for.
        sizes: free dimension to size.
        inputs: one tensor per input, in the program's dtypes.
        overrides: node name to a tensor that takes the node's place: float regimes for models that read integers
            only. Lowered files cannot take them.
        regime: kind of its floating numbers.
        is_natural: the numbers are ordinary ones, on which an approximation is judged.
        samples: this case holds these samples of the case of that name, whose outputs must be the same there.
    """

    name: str
    sizes: dict[str, int]
    inputs: dict[str, Tensor]
    overrides: dict[str, Tensor] = field(default_factory=dict)
    regime: str = "normal"
    is_natural: bool = False
    samples: tuple[str, tuple[int, ...]] | None = None

    @property
    def label(self) -> str:
        """Name and sizes: ``prime[batch=3,sequence=5]``."""
        return label_of(self.name, self.sizes)


def label_of(name: str, sizes: Mapping[str, int]) -> str:
    """Label of a case that need not exist."""
    listed = ",".join(f"{dim}={size}" for dim, size in sizes.items())
    return f"{name}[{listed}]" if listed else name
