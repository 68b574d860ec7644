"""Which norms the user means: all, the best, by position, or by the path of their module."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import NormSite
from flowopt.errors import UserError

_BEST = re.compile(r"best:(\d+)")
_POSITIONS = re.compile(r"(\d+)(?:-(\d+))?")
_FORMS = "all, best:6, positions such as 0,2,4-7, or paths such as encoder.layer.*.attention.*"


def chosen_norms(text: str, sites: Sequence[NormSite], fits: Mapping[str, NormFit]) -> tuple[NormSite, ...]:
    """The sites that a text names, in graph order.

    Args:
        text: ``all``; ``best:N``, the N with the smallest score; positions and ranges of them; or patterns of module
            paths. Several are separated by commas.
        sites: every norm of the model.
        fits: by the name of the site.

    Raises:
        UserError: another form, a position that there is not, or a pattern that fits nothing.
    """
    found: set[str] = set()
    for part in (part.strip() for part in text.split(",")):
        found |= {site.name for site in _named(part, sites, fits)}
    return tuple(site for site in sites if site.name in found)


def _named(part: str, sites: Sequence[NormSite], fits: Mapping[str, NormFit]) -> Sequence[NormSite]:
    if part == "all":
        return sites
    best = _BEST.fullmatch(part)
    if best:
        count = int(best[1])
        if not 0 < count <= len(sites):
            raise UserError(f"best:{count} of {len(sites)} norms", hint=f"a number from 1 to {len(sites)}")
        return sorted(sites, key=lambda site: (fits[site.name].score, site.position))[:count]
    positions = _POSITIONS.fullmatch(part)
    if positions:
        first, last = int(positions[1]), int(positions[2] or positions[1])
        wanted = range(first, last + 1)
        if not wanted or last >= len(sites):
            raise UserError(f"there is no norm {part}", hint=f"the model has {len(sites)}, 0 to {len(sites) - 1}")
        return [site for site in sites if site.position in wanted]
    matching = [site for site in sites if site.module is not None and fnmatchcase(site.module, part)]
    if not matching:
        paths = ", ".join(site.module or site.name for site in sites[:4])
        raise UserError(f"no norm of the model is called {part!r}", hint=f"{_FORMS}; its norms: {paths}, ...")
    return matching
