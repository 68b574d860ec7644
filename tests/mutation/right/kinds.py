"""Every kind of right rewrite, by name."""

from typing import Final

from tests.mutation.right import activations, attention, convolutions, layouts, linears, norms, products, sums, wide
from tests.mutation.right.kind import Kind

_ALL = (
    *sums.KINDS,
    *products.KINDS,
    *linears.KINDS,
    *convolutions.KINDS,
    *norms.KINDS,
    *attention.KINDS,
    *activations.KINDS,
    *layouts.KINDS,
    *wide.KINDS,
)
KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in _ALL}
