"""A case before its inputs exist."""

from collections.abc import Callable
from dataclasses import dataclass

from flowopt.verification.inputs.case import Case, label_of


@dataclass(frozen=True, slots=True)
class CasePlan:
    """Name and sizes of a case; ``make`` allocates its inputs, which may be larger than the machine."""

    name: str
    sizes: dict[str, int]
    make: Callable[[], Case]

    @property
    def label(self) -> str:
        """As of the case."""
        return label_of(self.name, self.sizes)
