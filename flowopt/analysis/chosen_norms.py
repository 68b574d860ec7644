"""Which norms a user means."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from flowopt.analysis.norm_sites import NormKind, NormSite
from flowopt.analysis.streams import Placement
from flowopt.errors import UserError


def chosen_norms(sites: Sequence[NormSite], wanted: Iterable[str]) -> tuple[NormSite, ...]:
    """The norms that at least one item names, in graph order.

    Args:
        sites: of a program, from ``norm_sites``.
        wanted: each a position (``3``), a range of positions (``0-5``, both ends in it), the name of a norm's value
            (``layer_norm_2``), the path of its module with or without wildcards (``encoder.layer.*.output.*``), a
            placement (``pre``, ``post``), or a kind (``layer``, ``rms``, ``group``, ``batch``).

    Raises:
        UserError: an item names no norm; says what there is.
    """
    named: set[str] = set()
    for item in wanted:
        found = {site.name for site in sites if _means(item.strip(), site)}
        if not found:
            shown = "; ".join(f"{s.position}: {s.name}{f' in {s.module}' if s.module else ''}" for s in sites)
            raise UserError(f"{item!r} names no norm", hint=f"the model's norms are {shown or 'none'}")
        named |= found
    return tuple(site for site in sites if site.name in named)


def _means(item: str, site: NormSite) -> bool:
    positions = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
    if positions:
        first, last = positions[1], positions[2] or positions[1]
        return int(first) <= site.position <= int(last)
    if item in set(Placement) | set(NormKind):
        return item in (site.placement, site.kind)
    return item == site.name or (site.module is not None and fnmatchcase(site.module, item))
