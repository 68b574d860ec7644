"""The norms of a program that a fixed scale and shift could take the place of."""

from dataclasses import dataclass
from typing import Protocol

from torch import fx

from flowopt.analysis.norm_parts import NormKind, NormParts, norm_parts
from flowopt.analysis.streams import Placement, stream_of
from flowopt.ir.metadata import module_path

__all__ = ["NormKind", "NormSite", "norm_sites"]


@dataclass(frozen=True, slots=True)
class NormSite:
    """One norm.

    Attributes:
        name: node whose value the norm's readers see, written gain and shift included: what a swap replaces.
        source: node that is normalised: what a swap reads.
        kind: what its statistics are of.
        module: path of the module that it came from, for people.
        axis: of the channels, as a non-negative axis of the value.
        channels: how many.
        subtracts_mean: whether it subtracts a mean that it computes: layer and group norms do.
        placement: of the residual stream that it reads over the last axis; None where it reads no such stream.
        position: among the graph's norms, from 0, in graph order.
    """

    name: str
    source: str
    kind: NormKind
    module: str | None
    axis: int
    channels: int
    subtracts_mean: bool
    placement: Placement | None
    position: int


class HasGraph(Protocol):
    """A captured program, as far as norms are found in it: analysis knows graphs alone."""

    @property
    def graph(self) -> fx.Graph: ...


def norm_sites(program: HasGraph) -> tuple[NormSite, ...]:
    """Every norm of one vector of channels with stored gain and shift, in graph order.

    Norms that are written out are found after the passes ``recognize-layer-norm`` and ``recognize-rms-norm``, batch
    norms after ``canonicalize-aten``. Those over several axes, or with a gain that is computed at run time, are none.
    """
    placements: dict[fx.Node, Placement | None] = {}
    found = [parts for node in program.graph.nodes if (parts := norm_parts(node)) is not None]
    return tuple(_site(parts, at, placements) for at, parts in enumerate(found))


def _site(parts: NormParts, position: int, placements: dict[fx.Node, Placement | None]) -> NormSite:
    return NormSite(
        name=parts.output.name,
        source=parts.source.name,
        kind=parts.kind,
        module=module_path(parts.norm) or None,
        axis=parts.axis,
        channels=parts.channels,
        subtracts_mean=parts.kind in (NormKind.LAYER, NormKind.GROUP),
        placement=_placement(parts, placements),
        position=position,
    )


def _placement(parts: NormParts, known: dict[fx.Node, Placement | None]) -> Placement | None:
    # Streams know the norms over the last axis alone.
    if parts.kind not in (NormKind.LAYER, NormKind.RMS):
        return None
    if parts.source not in known:
        stream = stream_of(parts.source)
        if stream is None:
            return None
        placement = stream.placement if stream.additions else None
        known |= dict.fromkeys(stream.axes, placement)
    return known[parts.source]
