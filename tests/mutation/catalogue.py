"""All kinds of mistakes by name."""

from tests.mutation.families import (
    activations,
    attributes,
    axes,
    bitwise,
    constants,
    dtypes,
    edges,
    folds,
    guards,
    layouts,
    masks,
    norms,
    off_by_one,
    outputs,
    places,
    softmax,
    traced,
    values,
)
from tests.mutation.kind import Kind

FAMILIES = (
    attributes,
    activations,
    constants,
    folds,
    edges,
    dtypes,
    axes,
    guards,
    places,
    traced,
    values,
    norms,
    masks,
    softmax,
    off_by_one,
    outputs,
    layouts,
    bitwise,
)


def _found() -> tuple[Kind, ...]:
    return tuple(kind for family in FAMILIES for kind in vars(family).values() if isinstance(kind, Kind))


KINDS: dict[str, Kind] = {kind.name: kind for kind in _found()}
