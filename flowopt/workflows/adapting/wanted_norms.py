"""Which norms the user means: all, the best, or those that items name."""

import re
from collections.abc import Mapping, Sequence

from flowopt.analysis.chosen_norms import chosen_norms
from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import NormSite
from flowopt.errors import UserError

_BEST = re.compile(r"best:(\d+)")


def wanted_norms(
    text: str, sites: Sequence[NormSite], fits: Mapping[str, NormFit], scores: Mapping[str, float]
) -> tuple[NormSite, ...]:
    """The sites that a text names, in graph order.

    Args:
        text: items separated by commas: ``all``; ``best:N``, the N with the smallest score, those of massive
            activations last; or what ``flowopt.analysis.chosen_norms`` takes: positions, ranges, paths, placements.
        sites: every norm of the model.
        fits: by the name of the site.
        scores: likewise: what replacing the norm costs.

    Raises:
        UserError: an item names nothing.
    """
    found: set[str] = set()
    for item in (item.strip() for item in text.split(",")):
        best = _BEST.fullmatch(item)
        if item == "all":
            found |= {site.name for site in sites}
        elif best:
            found |= {site.name for site in _best(int(best[1]), sites, fits, scores)}
        else:
            found |= {site.name for site in chosen_norms(sites, [item])}
    return tuple(site for site in sites if site.name in found)


def _best(
    count: int, sites: Sequence[NormSite], fits: Mapping[str, NormFit], scores: Mapping[str, float]
) -> Sequence[NormSite]:
    if not 0 < count <= len(sites):
        raise UserError(f"best:{count} of {len(sites)} norms", hint=f"a number from 1 to {len(sites)}")

    def rank(site: NormSite) -> tuple[bool, float, int]:
        return fits[site.name].massive > 0, scores[site.name], site.position

    return sorted(sites, key=rank)[:count]
