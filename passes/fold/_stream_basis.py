"""Scales and offsets in which the values of a residual stream are kept, so that no per-channel map is left in it.

    h = p * z + c        z is kept in place of h; for every value of the stream a p and a c, each a vector

A map h' = s * h + t then costs nothing: z' = z, p' = s * p, c' = s * c + t. Values that are added must have one p. What
c' would be goes into the writer behind the addition before the map, where nothing else reads it on the way: z' has no
offset then, and is no larger than h' was. Other offsets go on to the readers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, fx

from flowopt.analysis.affine_streams import SIZE_READERS, AffineStream, reads
from flowopt.analysis.channel_steps import scale_and_shift
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor
from flowopt.passes.fold._stream_factors import Factors, ObstacleError
from flowopt.passes.fold._stream_layers import Kind, kind_of, takes_offset

_aten = torch.ops.aten
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_PRODUCTS = (_aten.mul.Tensor, _aten.div.Tensor)
# Those that need the same offset in all that they read.
_ALTERNATIVES = (_aten.where.self, _aten.cat.default)

Constant = Callable[[fx.Node], Tensor]


@final
@dataclass(frozen=True, slots=True)
class Basis:
    """Scale and offset of every value.

    Attributes:
        stream: whose values they are.
        scales: of every value, (channels,) float64; None where it is exactly one.
        offsets: of the values that have one, (channels,) float64.
        stored: offsets of stored tensors that are added, by the operator that adds them and the tensor.
    """

    stream: AffineStream
    scales: dict[fx.Node, Tensor | None]
    offsets: dict[fx.Node, Tensor] = field(default_factory=dict)
    stored: dict[tuple[fx.Node, fx.Node], Tensor] = field(default_factory=dict)

    def is_kept(self, value: fx.Node) -> bool:
        """Whether a value is kept as it is."""
        return self.scales[value] is None and value not in self.offsets


def basis(
    stream: AffineStream,
    found: Factors,
    start: fx.Node,
    exponents: tuple[int, ...],
    unshifted: frozenset[fx.Node],
    constant: Constant,
) -> Basis:
    """Scales and offsets of a stream.

    Args:
        stream: the stream.
        found: its scales.
        start: the value, with its group, that has the scale 2 to the power of ``exponents``.
        exponents: one for every channel; empty where all are 0.
        unshifted: steps whose shift is zero.
        constant: value of a parameter-only node, in float64.

    Raises:
        ObstacleError: an offset would reach what cannot have one.
    """
    scales: dict[fx.Node, Tensor | None] = {}
    by_group: dict[fx.Node, Tensor] = {}
    for root, factor in found.factor.items():
        by_group[root] = factor / found.of(start)
        if exponents:
            by_group[root] = by_group[root] * torch.tensor(exponents).to(factor).exp2()
    for node in stream.axes:
        is_one = not exponents and found.group[node] is found.group[start]
        scales[node] = None if is_one else by_group[found.group[node]]
    result = Basis(stream, scales)
    for node in stream.axes:
        if node in stream.steps:
            _take_step(result, node, unshifted, constant)
        elif node in stream.joins:
            _join(result, node)
    return result


def _take_step(found: Basis, value: fx.Node, unshifted: frozenset[fx.Node], constant: Constant) -> None:
    step = found.stream.steps[value]
    scale, shift = scale_and_shift(step, constant, found.stream.size)
    offset = found.offsets.get(step.source)
    if offset is not None and scale is not None:
        offset = offset * scale
    if shift is not None and value not in unshifted:
        offset = shift if offset is None else offset + shift
    if offset is None:
        return
    path = _way_to_a_writer(found.stream, step.source, step.node)
    if path is None:
        found.offsets[value] = offset
        return
    pushed = -offset if scale is None else -offset / scale
    for at, node in enumerate(path):
        if is_parameter_only(node):
            key = path[at - 1], node
            found.stored[key] = found.stored[key] + pushed if key in found.stored else pushed
            break
        found.offsets[node] = found.offsets[node] + pushed if node in found.offsets else pushed
        if at + 1 < len(path):
            pushed = _before(found.stream, node, path[at + 1], pushed, constant)


def _before(stream: AffineStream, node: fx.Node, source: fx.Node, offset: Tensor, constant: Constant) -> Tensor:
    """The offset of what ``node`` reads that gives ``node`` an offset."""
    if node in stream.steps:
        scale, _ = scale_and_shift(stream.steps[node], constant, stream.size)
        return offset if scale is None else offset / scale
    factor = _factor(node, source)
    assert factor is not None  # the way was found through it
    return offset / factor


def _join(found: Basis, node: fx.Node) -> None:
    offsets = [(source, found.offsets[source]) for source in found.stream.sources(node) if source in found.offsets]
    if not offsets:
        return
    if node.target in _ALTERNATIVES and len(found.stream.sources(node)) == 1:
        found.offsets[node] = offsets[0][1]
        for source, _ in found.stream.joins[node]:
            if source not in found.stream.axes:
                found.stored[node, source] = offsets[0][1]
        return
    total = torch.zeros_like(offsets[0][1])
    for source, offset in dict(offsets).items():
        factor = _factor(node, source)
        if factor is None:
            message = f"{node.name} ({node.target}) would have to change the shift that {source.name} is kept without"
            raise ObstacleError("stream-tapped", message, node)
        total = total + factor * offset
    found.offsets[node] = total


def _factor(node: fx.Node, source: fx.Node) -> float | None:
    """What an offset of ``source`` is multiplied by in ``node``, all that read it together; None: no one number."""
    if node.target in _SUMS:
        alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]  # a number
        sign = -alpha if node.target is _aten.sub.Tensor else alpha
        total = sum(part for part, side in zip((1.0, sign), node.args[:2], strict=True) if side is source)
        return total or None
    if node.target in _PRODUCTS:
        (other,) = (side for side in node.args[:2] if side is not source)
        if isinstance(other, fx.Node) or not other:
            return None
        number = float(other)  # type: ignore[arg-type]  # a number
        return number if node.target is _aten.mul.Tensor else 1.0 / number
    if node.target is _aten.neg.default:
        return -1.0
    return None if node.target in (*_ALTERNATIVES, _aten.sum.dim_IntList) else 1.0


def _way_to_a_writer(stream: AffineStream, value: fx.Node, reader: fx.Node) -> tuple[fx.Node, ...] | None:
    """Values from ``value`` up to a writer that takes an offset, or to a stored tensor, with no other readers."""
    if {user for user in value.users if user.target not in SIZE_READERS} != {reader} or reads(reader, value) != 1:
        return None
    if value in stream.steps:
        step = stream.steps[value]
        return _behind(value, _way_to_a_writer(stream, step.source, step.node))
    if value not in stream.joins:
        return (value,) if takes_offset(value, stream.axes[value]) else None
    ways = [way for way in _ways(stream, value) if way is not None and _factor(value, way[0]) is not None]
    return _behind(value, min(ways, key=lambda way: _cost(stream, way[-1]), default=None))


def _ways(stream: AffineStream, value: fx.Node) -> Iterator[tuple[fx.Node, ...] | None]:
    for source, _ in stream.joins[value]:
        if source in stream.axes:
            yield _way_to_a_writer(stream, source, value)
        elif reads(value, source) == 1 and value.target in _SUMS:
            yield (source,)


def _behind(value: fx.Node, way: tuple[fx.Node, ...] | None) -> tuple[fx.Node, ...] | None:
    return None if way is None else (value, *way)


def _cost(stream: AffineStream, writer: fx.Node) -> int:
    """A bias that is there costs nothing; a table of embeddings has to be written anew."""
    if writer not in stream.axes:
        return 1
    kind = kind_of(writer, stream.axes[writer])
    recorded = recorded_tensor(writer)
    assert recorded is not None
    return {Kind.BIASED: 0, Kind.NORM: 2, Kind.UNBIASED: 3}.get(kind, 4)
