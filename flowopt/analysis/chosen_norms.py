"""Which norms a user means."""

from collections.abc import Iterable, Sequence

from flowopt.analysis.chosen_sites import chosen_sites
from flowopt.analysis.norm_sites import NormSite


def chosen_norms(sites: Sequence[NormSite], wanted: Iterable[str]) -> tuple[NormSite, ...]:
    """The norms that at least one item names, in graph order.

    Args:
        sites: of a program, from ``norm_sites``.
        wanted: as ``chosen_sites`` takes them, or a placement (``pre``, ``post``), or a kind (``layer``, ``rms``,
            ``group``, ``batch``).

    Raises:
        UserError: an item names no norm; says what there is.
    """
    return chosen_sites(sites, wanted, what="norm", words=_words)


def _words(site: NormSite) -> tuple[str, ...]:
    return (site.kind,) if site.placement is None else (site.kind, site.placement)
