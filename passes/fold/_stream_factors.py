"""Scales of a residual stream's values: which must be equal, and by what the others differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, fx

from flowopt.analysis.affine_streams import AffineStream
from flowopt.analysis.channel_steps import scale_and_shift

# Two products of the same scales, in another order.
_SAME: Final = 1e-12


class ObstacleError(Exception):
    """Why a stream stays as it is: a refusal's code, message and node."""

    def __init__(self, code: str, message: str, node: fx.Node | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.node = code, message, node


@final
@dataclass(frozen=True, slots=True)
class Factors:
    """The scale of every value, but for one vector that is common to all.

    Attributes:
        group: of every value, the first value with which it must have the same scale.
        factor: (channels,) float64, of every such group; ones for the group of the stream's first value.
    """

    group: dict[fx.Node, fx.Node]
    factor: dict[fx.Node, Tensor]

    def of(self, value: fx.Node) -> Tensor:
        """The scale of a value."""
        return self.factor[self.group[value]]


def factors(stream: AffineStream, constant: Callable[[fx.Node], Tensor]) -> Factors:
    """Scales that every addition agrees with.

    Raises:
        ObstacleError: there are none, or a scale is zero or no number.
    """
    group = _groups(stream)
    links: dict[fx.Node, list[tuple[fx.Node, Tensor]]] = {root: [] for root in group.values()}
    for step in stream.scales:
        scale, _ = scale_and_shift(step, constant, stream.size)
        assert scale is not None
        if not bool((scale.isfinite() & (scale != 0) & scale.reciprocal().isfinite()).all()):
            raise ObstacleError("extreme-scale", f"{step.node.name} scales a channel by 0 or by no number", step.node)
        before, after = group[step.source], group[step.value]
        links[before].append((after, scale))
        links[after].append((before, scale.reciprocal()))
    first = group[next(iter(stream.axes))]
    (_, like), *_ = links[first] or [(first, torch.ones(stream.size, dtype=torch.float64))]
    found = {first: torch.ones_like(like)}
    pending = [first]
    while pending:
        node = pending.pop()
        for other, scale in links[node]:
            wanted = found[node] * scale
            if other not in found:
                found[other] = wanted
                pending.append(other)
            elif not torch.allclose(found[other], wanted, rtol=_SAME, atol=0.0):
                message = f"{other.name} is added to values that are scaled otherwise, such as {node.name}"
                raise ObstacleError("mixed-scale", message, other)
    return Factors(group, found)


def _groups(stream: AffineStream) -> dict[fx.Node, fx.Node]:
    """The first value of those that additions and moves tie together, of every value."""
    parent = {node: node for node in stream.axes}

    def root(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in stream.axes:
        if node in stream.steps and stream.steps[node].scales:
            continue
        for source in stream.sources(node):
            first, second = sorted((root(node), root(source)))
            parent[second] = first
    return {node: root(node) for node in stream.axes}
