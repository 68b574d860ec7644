"""Residual streams: found by what is added to what, never by the names of modules.

A transformer's blocks read a value and add to it. All values that are joined by additions, and by operators that move
or scale whole feature vectors, are one stream. What is added to it from outside are its writers; what reads it and does
more than add is a norm, or a tap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import fx

from flowopt.analysis.norm_affine import LIBRARY_NORMS
from flowopt.analysis.stream_joins import carried, carried_axis
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, static_size

_aten = torch.ops.aten
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_AFFINE = (*_SUMS, _aten.mul.Tensor)
_SIZE_READERS = (_aten.sym_size.int,)


class Placement(StrEnum):
    """Where the norms of a stream stand.

    Attributes:
        PRE: every reader is a norm, and no norm writes into the stream.
        POST: a norm writes what others read as it is: the norm stands behind the addition.
        PERI: norms read the stream, and norms write into it.
        MIXED: norms of different kinds read it, or norms beside other readers.
        NONE: no norm reads it.
    """

    PRE = "pre"
    POST = "post"
    PERI = "peri"
    MIXED = "mixed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StreamReader:
    """An operator that reads a value of a stream and does more than add, move or scale it."""

    node: fx.Node
    source: fx.Node


@dataclass(frozen=True, slots=True)
class Stream:
    """One residual stream.

    Attributes:
        size: number of features.
        axes: every value of the stream, writers included, with the axis of its features, in graph order.
        writers: values that come from outside, in graph order.
        joins: operators that add, move or scale, in graph order.
        norms: norms over the features.
        taps: all other readers; of an output of the model the graph's output node.
        sizes: readers of sizes alone.
    """

    size: int
    axes: Mapping[fx.Node, int]
    writers: tuple[fx.Node, ...]
    joins: tuple[fx.Node, ...]
    norms: tuple[StreamReader, ...]
    taps: tuple[StreamReader, ...]
    sizes: tuple[StreamReader, ...]

    @property
    def additions(self) -> tuple[fx.Node, ...]:
        """The joins that add."""
        return tuple(node for node in self.joins if node.target in _SUMS)

    @property
    def norm_writers(self) -> tuple[fx.Node, ...]:
        """The writers that are norms, with or without gain and shift."""
        return tuple(node for node in self.writers if is_norm_output(node))

    @property
    def placement(self) -> Placement:
        """Where its norms stand."""
        if not self.norms:
            return Placement.NONE
        inner_taps = [tap for tap in self.taps if tap.node.op != "output"]
        if inner_taps and self.norm_writers:
            return Placement.POST
        if inner_taps or len({reader.node.target for reader in self.norms}) > 1:
            return Placement.MIXED
        inner = _reached_from({reader.node for reader in self.norms})
        # A norm at the entry alone, as behind embeddings, is no part of the blocks.
        return Placement.PERI if any(writer in inner for writer in self.norm_writers) else Placement.PRE

    @property
    def is_parallel(self) -> bool:
        """Whether, wherever blocks write between two norms, several do: attention beside feed-forward network."""
        points = {reader.source for reader in self.norms}
        inner = _reached_from({reader.node for reader in self.norms})
        counts = [_written_before(point, points, self, inner) for point in points]
        counts = [count for count in counts if count]
        return bool(counts) and min(counts) > 1


def stream_of(value: fx.Node, axis: int = -1) -> Stream | None:
    """The stream that a value belongs to.

    Args:
        value: any value.
        axis: of its features.

    Returns:
        None where the number of features is free, or features of one value stand along two axes.
    """
    recorded, size = recorded_tensor(value), static_size(value, axis)
    if recorded is None or size is None:
        return None
    axes = {value: axis % recorded.dim()}
    pending = [value]
    while pending:
        node = pending.pop()
        near = list(carried(node, axes[node]) or ())
        near += [(user, at) for user in node.users if (at := carried_axis(user, node, axes[node])) is not None]
        for other, at in near:
            if other not in axes:
                axes[other] = at
                pending.append(other)
            elif axes[other] != at:
                return None
    return _described(size, axes)


def streams(graph: fx.Graph) -> list[Stream]:
    """Every stream of a graph that has an addition and is read by a norm, in graph order of the first norm."""
    found: list[Stream] = []
    seen: set[fx.Node] = set()
    for norm in graph.nodes:
        source = norm.args[0] if norm.op == "call_function" and norm.target in LIBRARY_NORMS else None
        if not isinstance(source, fx.Node) or source in seen:
            continue
        stream = stream_of(source)
        if stream is not None:
            seen |= stream.axes.keys()
            if stream.additions:
                found.append(stream)
    return found


def is_norm_output(node: fx.Node) -> bool:
    """Whether a value is a norm's, perhaps with a gain and a shift written after it."""
    while node.op == "call_function" and node.target in _AFFINE:
        others = [a for a in node.args[:2] if isinstance(a, fx.Node) and not is_parameter_only(a)]
        if len(others) != 1:
            return False
        (node,) = others
    return node.op == "call_function" and node.target in LIBRARY_NORMS


def reads_last_axis(norm: fx.Node, source: fx.Node) -> bool:
    """Whether a library norm is of ``source``, over its last axis alone, and reads it nowhere else."""
    if norm.op != "call_function" or norm.target not in LIBRARY_NORMS:
        return False
    shape: Any = norm.args[1]
    return isinstance(shape, (list, tuple)) and len(shape) == 1 and norm.args[0] is source and _count(norm, source) == 1


def _described(size: int, axes: Mapping[fx.Node, int]) -> Stream:
    order = dict(sorted(axes.items()))
    inside = {node: carried(node, axis) for node, axis in order.items()}
    norms: list[StreamReader] = []
    taps: list[StreamReader] = []
    sizes: list[StreamReader] = []
    for node in order:
        for user in sorted(node.users):
            joined = inside.get(user) or ()
            if sum(source is node for source, _ in joined) == _count(user, node):
                continue
            reader = StreamReader(user, node)
            if user.target in _SIZE_READERS:
                sizes.append(reader)
            elif reads_last_axis(user, node) and _is_last(node, order[node]):
                norms.append(reader)
            else:
                taps.append(reader)
    return Stream(
        size=size,
        axes=order,
        writers=tuple(node for node, joined in inside.items() if joined is None),
        joins=tuple(node for node, joined in inside.items() if joined is not None),
        norms=tuple(sorted(norms, key=lambda reader: reader.node)),
        taps=tuple(taps),
        sizes=tuple(sizes),
    )


def _is_last(node: fx.Node, axis: int) -> bool:
    value = recorded_tensor(node)
    return value is not None and axis == value.dim() - 1


def _count(user: fx.Node, node: fx.Node) -> int:
    """How often ``user`` reads ``node``: ``all_input_nodes`` has each once."""
    reads: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), reads.append)
    return reads.count(node)


def _reached_from(nodes: set[fx.Node]) -> set[fx.Node]:
    """Some nodes and all that depend on them."""
    if not nodes:
        return set()
    reached = set(nodes)
    for node in next(iter(nodes)).graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return reached


def _written_before(point: fx.Node, points: set[fx.Node], stream: Stream, inner: set[fx.Node]) -> int:
    """Writers of blocks whose vectors reach a point, and no other point before it."""
    pending, seen, count = [point], {point}, 0
    while pending:
        node = pending.pop()
        joined = carried(node, stream.axes[node])
        if joined is None:
            count += node in inner
        for source, _ in joined or ():
            if source not in seen and source not in points:
                seen.add(source)
                pending.append(source)
    return count
