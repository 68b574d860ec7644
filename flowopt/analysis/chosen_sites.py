"""Which of a model's norms, attentions or the like a user means."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from flowopt.errors import UserError


class Placed(Protocol):
    """What can be meant: it has a name, a place in the graph's order and perhaps the path of a module."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str | None: ...
    @property
    def position(self) -> int: ...


SiteT = TypeVar("SiteT", bound=Placed)


def chosen_sites(
    sites: Sequence[SiteT],
    wanted: Iterable[str],
    *,
    what: str,
    words: Callable[[SiteT], Collection[str]] = lambda _: (),
) -> tuple[SiteT, ...]:
    """The sites that at least one item names, in their order.

    Args:
        sites: of a program.
        wanted: each a position (``3``), a range of positions (``0-5``, both ends in it), the name of a node
            (``layer_norm_2``), the path of a module with or without wildcards (``encoder.layer.*.output.*``), or one
            of the words of a site.
        what: one of them is, for messages: ``norm``.
        words: by which a site is meant besides.

    Raises:
        UserError: an item names none; says what there is.
    """
    named: set[str] = set()
    for item in wanted:
        found = {site.name for site in sites if _means(item.strip(), site) or item.strip() in words(site)}
        if not found:
            shown = "; ".join(f"{s.position}: {s.name}{f' in {s.module}' if s.module else ''}" for s in sites)
            raise UserError(f"{item!r} names no {what}", hint=f"the model's {what}s are {shown or 'none'}")
        named |= found
    return tuple(site for site in sites if site.name in named)


def _means(item: str, site: Placed) -> bool:
    positions = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
    if positions:
        first, last = positions[1], positions[2] or positions[1]
        return int(first) <= site.position <= int(last)
    return item == site.name or (site.module is not None and fnmatchcase(site.module, item))
