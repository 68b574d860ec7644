"""At which sizes an artifact of linear attention is measured beside its original."""

from collections.abc import Sequence

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.ir.metadata import sizes_as_text
from flowopt.program.program import Program


def compared_sizes(program: Program, sites: Sequence[AttentionSite], length: int | None) -> dict[str, int]:
    """One sample of the length that the user asked for: there linear attention is worth what it is.

    Args:
        program: of the sites.
        sites: attentions that were replaced.
        length: of sequences; None: none was asked for.

    Returns:
        Free dimensions by name; none where no length was asked for, or the model does not take it.
    """
    if length is None:
        return {}
    dims = {spelling: dim for dim in program.dims for spelling in (dim.symbol, dim.name)}
    found: dict[str, int] = {}
    for site in sites:
        batch, *_, tokens, _ = sizes_as_text(program.node(site.key))
        if tokens in dims:
            found[dims[tokens].name] = length
        if batch in dims:
            found.setdefault(dims[batch].name, dims[batch].minimum)
    ranges = {dim.name: dim for dim in program.dims}
    fits = all(ranges[name].minimum <= size and (ranges[name].maximum or size) >= size for name, size in found.items())
    return found if fits and length in found.values() else {}
