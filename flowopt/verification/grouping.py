"""Which cases are evaluated together."""

from collections.abc import Iterable, Iterator
from typing import Final

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.program.program import Program
from flowopt.verification.inputs.cases import Case

# Activations of a group in float64: small cases share the reading of weights, large ones run alone.
_GROUP_BYTES: Final = 256 << 20
_MOST: Final = 32


def grouped(program: Program, cases: Iterable[Case]) -> Iterator[tuple[Case, ...]]:
    """Cases in their order, in groups whose activations fit into memory together."""
    group: list[Case] = []
    used = 0
    for case in cases:
        needed = activation_bytes(program, case.sizes, raised=True)
        if group and (used + needed > _GROUP_BYTES or len(group) == _MOST):
            yield tuple(group)
            group, used = [], 0
        group.append(case)
        used += needed
    if group:
        yield tuple(group)
