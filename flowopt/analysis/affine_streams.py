"""Residual streams with frozen per-channel maps inside: what is added, moved, scaled and shifted, and who reads it.

As ``flowopt.analysis.streams``, but a product with a stored vector, a sum with one and a batch norm in eval mode are
part of the stream, and stored tensors are no values of it: each operator that adds one can have a copy of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from flowopt.analysis.channel_steps import ChannelStep, channel_step
from flowopt.analysis.feature_layout import PlacedReader, layout_along, moved_layout, placed_readers
from flowopt.analysis.stream_joins import Carried, carried, carried_axis
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import static_size

_aten = torch.ops.aten
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
SIZE_READERS = (_aten.sym_size.int,)


@final
@dataclass(frozen=True, slots=True)
class AffineStream:
    """One stream.

    Attributes:
        size: number of channels.
        axes: every value with the axis of its channels, in graph order.
        steps: of the values that a per-channel map computes.
        joins: of the values that add, move, or scale by the same for all channels: what they do that to, with stored
            tensors, and the axis of each. All other values are writers.
    """

    size: int
    axes: Mapping[fx.Node, int]
    steps: Mapping[fx.Node, ChannelStep]
    joins: Mapping[fx.Node, Carried]

    @property
    def writers(self) -> tuple[fx.Node, ...]:
        """Values that come from outside, in graph order."""
        return tuple(node for node in self.axes if node not in self.steps and node not in self.joins)

    @property
    def scales(self) -> tuple[ChannelStep, ...]:
        """The steps that scale, in graph order."""
        return tuple(step for step in self.steps.values() if step.scales)

    @property
    def is_residual(self) -> bool:
        """Whether two computed values are added somewhere."""
        sums = (joined for node, joined in self.joins.items() if node.target in _SUMS)
        return any(sum(not is_parameter_only(source) for source, _ in joined) > 1 for joined in sums)

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The values of the stream that a value is computed from; one that is read twice is given twice."""
        if node in self.steps:
            return (self.steps[node].source,)
        return tuple(source for source, _ in self.joins.get(node, ()) if source in self.axes)

    def readers(self, value: fx.Node) -> Iterator[PlacedReader]:
        """What reads a value and is no part of the stream, behind moves that do not keep channels together."""
        layout = layout_along(value, self.axes[value])
        assert layout is not None  # a value has a recorded shape
        for user in sorted(value.users):
            if self._is_inside(user, value):
                continue
            moved = moved_layout(user, value, layout)
            if moved is None:
                yield PlacedReader(user, value, (), layout)
            else:
                yield from placed_readers(user, moved, (user,))

    def _is_inside(self, user: fx.Node, value: fx.Node) -> bool:
        if user in self.axes:
            return self.sources(user).count(value) == reads(user, value)
        # A batch norm gives a tuple, which is no value.
        return any(found in self.steps and self.steps[found].node is user for found in user.users)


def affine_stream(value: fx.Node, axis: int) -> AffineStream | None:
    """The stream of a value.

    Args:
        value: a computed value.
        axis: of its channels, counted from 0.

    Returns:
        None where the number of channels is free, or channels of one value stand along two axes.
    """
    size = static_size(value, axis)
    if size is None:
        return None
    axes = {value: axis}
    pending = [value]
    while pending:
        node = pending.pop()
        for other, at in (*_sources(node, axes[node]), *_followers(node, axes[node])):
            if other not in axes:
                axes[other] = at
                pending.append(other)
            elif axes[other] != at:
                return None
    order = dict(sorted(axes.items()))
    steps = {node: step for node, at in order.items() if (step := channel_step(node, at)) is not None}
    others = ((node, carried(node, at)) for node, at in order.items() if node not in steps)
    return AffineStream(size, order, steps, {node: joined for node, joined in others if joined is not None})


def reads(user: fx.Node, value: fx.Node) -> int:
    """How often ``user`` reads ``value``: ``all_input_nodes`` has each once."""
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), found.append)
    return found.count(value)


def _sources(node: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    step = channel_step(node, axis)
    if step is not None:
        yield step.source, axis
        return
    yield from ((source, at) for source, at in carried(node, axis) or () if not is_parameter_only(source))


def _followers(node: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    # The value of a batch norm is taken out of a tuple.
    for user in (*node.users, *(taken for norm in node.users for taken in norm.users)):
        step = channel_step(user, axis)
        if step is not None and step.source is node:
            yield user, axis
        elif step is None and user in node.users:
            at = carried_axis(user, node, axis)
            if at is not None:
                yield user, at
