"""Claims that are evaluated in one walk, because their regions start at the same values.

Where the regions of a pass reach back to the inputs, as those of a residual stream do, the region of one site holds
those of all before it. Evaluated one by one they cost the square of the depth; in one walk, one run of the model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from torch import fx

from flowopt.rewrite.edit import Claim
from flowopt.verification.sites.region import Region

# What a group keeps, of the replaced values and of those that the new sides read, until its claims are compared.
_MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class LocatedClaim:
    """A claim, its site and its region."""

    anchor: str
    claim: Claim
    region: Region


@final
@dataclass(frozen=True, slots=True)
class ClaimGroup:
    """Claims whose regions have the same roots.

    Attributes:
        members: in the order of the pass.
        kinds: names of the regimes in which they are compared.
    """

    members: tuple[LocatedClaim, ...]
    kinds: tuple[str, ...]

    @property
    def roots(self) -> tuple[fx.Node, ...]:
        """The nodes that get values."""
        return self.members[0].region.roots

    @property
    def free(self) -> frozenset[fx.Node]:
        """Those roots that take any number."""
        return self.members[0].region.free

    @property
    def olds(self) -> tuple[str, ...]:
        """Names of the replaced nodes."""
        return tuple(dict.fromkeys(one.region.old.name for one in self.members))

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the nodes that the new sides read."""
        return tuple(sorted({name for one in self.members for name in one.region.shared}))

    def halves(self) -> "tuple[ClaimGroup, ClaimGroup]":
        """Two groups of a part of the claims each; there must be two at least."""
        middle = len(self.members) // 2
        return ClaimGroup(self.members[:middle], self.kinds), ClaimGroup(self.members[middle:], self.kinds)

    def parts(self, kept_bytes: Callable[[str], int], regimes: int) -> "Iterator[ClaimGroup]":
        """Groups that keep so little that memory stays bounded; a claim that keeps more than that is one of its own.

        Args:
            kept_bytes: of the value of a node, by name.
            regimes: how many are evaluated together.
        """
        part: list[LocatedClaim] = []
        kept: set[str] = set()
        used = 0
        for one in self.members:
            more = {one.region.old.name, *one.region.shared} - kept
            needed = regimes * sum(map(kept_bytes, more))
            if part and used + needed > _MOST_BYTES:
                yield ClaimGroup(tuple(part), self.kinds)
                part, kept, used = [], set(), 0
                more = {one.region.old.name, *one.region.shared}
                needed = regimes * sum(map(kept_bytes, more))
            part.append(one)
            kept |= more
            used += needed
        yield ClaimGroup(tuple(part), self.kinds)


def claim_groups(claims: Iterable[tuple[LocatedClaim, Sequence[str]]]) -> list[ClaimGroup]:
    """Groups in the order of their first claims.

    Args:
        claims: with the regimes in which each is compared.
    """
    found: dict[object, list[LocatedClaim]] = {}
    regimes: dict[object, tuple[str, ...]] = {}
    for one, kinds in claims:
        key = (one.region.roots, one.region.free, tuple(kinds))
        found.setdefault(key, []).append(one)
        regimes[key] = tuple(kinds)
    return [ClaimGroup(tuple(members), regimes[key]) for key, members in found.items()]
