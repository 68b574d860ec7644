"""A residual stream that is kept as ``h = p * z + c``: what reads it, what changes around it, and carrying that out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from flowopt.analysis.affine_streams import SIZE_READERS, AffineStream
from flowopt.analysis.sliding import sliding_of
from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._stream_basis import Basis
from flowopt.passes.fold._stream_factors import ObstacleError
from flowopt.passes.fold._stream_layers import (
    NORMS,
    Change,
    Kind,
    Reading,
    changed,
    changed_parameters,
    channels_along,
    kind_of,
    reading,
)
from flowopt.rewrite import Edit

_aten = torch.ops.aten


@final
@dataclass(frozen=True, slots=True)
class Readers:
    """What reads a stream from outside.

    Attributes:
        layers: layers whose inputs can be scaled.
        norms: norms, with the values that they read.
        taps: all others, with the values that they read; of an output of the model the graph's output node.
        sizes: readers of sizes alone, with the values and the moves between.
    """

    layers: tuple[Reading, ...]
    norms: tuple[tuple[fx.Node, fx.Node], ...]
    taps: tuple[tuple[fx.Node, fx.Node], ...]
    sizes: tuple[tuple[fx.Node, fx.Node, tuple[fx.Node, ...]], ...]


def readers_of(stream: AffineStream) -> Readers:
    """What reads a stream from outside, in graph order of the values."""
    found: tuple[list[Reading], list[tuple[fx.Node, fx.Node]], list[tuple[fx.Node, fx.Node]]] = [], [], []
    sizes: list[tuple[fx.Node, fx.Node, tuple[fx.Node, ...]]] = []
    for value in stream.axes:
        for reader in stream.readers(value):
            layer = reading(value, reader)
            if reader.node.target in SIZE_READERS:
                sizes.append((reader.node, value, reader.path))
            elif layer is not None:
                found[0].append(layer)
            elif reader.node.target in NORMS and reader.node.args[0] is reader.source:
                found[1].append((reader.node, value))
            else:
                found[2].append((reader.node, value))
    return Readers(tuple(found[0]), tuple(found[1]), tuple(found[2]), tuple(sizes))


@final
@dataclass(frozen=True, slots=True)
class Rescaled:
    """A stream in a basis: all that has to change.

    Attributes:
        basis: scales and offsets of the stream's values.
        readers: of the stream.
        changes: layers and norms with other parameters.
        stored: stored tensors with another value, by the operator that adds them.
    """

    basis: Basis
    readers: Readers
    changes: dict[fx.Node, Change]
    stored: dict[tuple[fx.Node, fx.Node], int]

    @property
    def left(self) -> tuple[fx.Node, ...]:
        """Values before which a scale or a shift is left, for what reads them as they were."""
        read = dict.fromkeys(value for _, value in (*self.readers.norms, *self.readers.taps))
        return tuple(value for value in read if not self.basis.is_kept(value))


def rescaled(basis: Basis, readers: Readers) -> Rescaled:
    """What has to change.

    Raises:
        ObstacleError: a convolution pads with zeros what has an offset.
    """
    stream = basis.stream
    changes: dict[fx.Node, Change] = {}
    for layer in readers.layers:
        if basis.is_kept(layer.value):
            continue
        offset = basis.offsets.get(layer.value)
        if offset is not None and layer.node.target in layers.CONVOLUTIONS and sliding_of(layer.node).pads:
            message = f"{layer.node.name} pads with zeros, to which a shift would have to be added"
            raise ObstacleError("padded-reader", message, layer.node)
        changes[layer.node] = Change(layer.node, layer.features, basis.scales[layer.value], offset)
    for writer in stream.writers:
        if kind_of(writer, stream.axes[writer]) is not Kind.COMPUTED and not basis.is_kept(writer):
            read = changes.get(writer, Change(writer))
            scale, offset = basis.scales[writer], basis.offsets.get(writer)
            changes[writer] = Change(writer, read.features, read.scale_in, read.offset_in, scale, offset)
    stored = {
        (node, source): at
        for node, joined in stream.joins.items()
        for source, at in joined
        if source not in stream.axes and (basis.scales[node] is not None or (node, source) in basis.stored)
    }
    return Rescaled(basis, readers, changes, stored)


def replaced_tensors(
    found: Rescaled, constant: Callable[[fx.Node], Tensor]
) -> Iterator[tuple[fx.Node, fx.Node | None, Tensor, Tensor | None]]:
    """Of every new tensor: who reads it, the node of the old one, its value and the old one's, both in float64."""
    for change in found.changes.values():
        for node, new in zip(change.parameters, changed_parameters(change, constant), strict=True):
            if new is not None:
                yield change.node, node, new, None if node is None else constant(node)
    for join, stored in found.stored:
        old = constant(stored)
        yield join, stored, _stored_value(found, join, stored, old), old


def rewrite_stream(edit: Edit, found: Rescaled) -> None:
    """Build the stream anew, and let all who read it read that."""
    stream, basis = found.basis.stream, found.basis
    moved: dict[fx.Node, fx.Node] = {}
    # A move that leads to a layer may be a writer of the stream too, which others read as it is.
    ways: dict[fx.Node, fx.Node] = {}
    replaced: list[tuple[fx.Node, fx.Node]] = []
    readings = {one.node: one for one in found.readers.layers if not basis.is_kept(one.value)}
    paths = [one.path for one in readings.values()]
    paths += [path for _, value, path in found.readers.sizes if not basis.is_kept(value)]
    moves = {node for path in paths for node in path}
    for node in sorted({*stream.axes, *readings, *moves}):
        with edit.before(node):
            if node in stream.steps:
                source = stream.steps[node].source
                moved[node] = moved.get(source, source)
            elif node in found.changes:
                source_at = 1 if node.target is layers.EMBEDDING else 0
                read = readings.get(node)
                given = node.args[source_at] if read is None else (ways if read.path else moved)[read.source]
                new = changed(edit, found.changes[node], given)
                if node in stream.axes:
                    moved[node] = new
                else:
                    replaced.append((node, new))
            elif node in stream.joins:
                _repeat_join(edit, found, node, moved)
            if node in moves:
                ways[node] = edit.repeat(node, moved | ways)
    for old, new in replaced:
        edit.replace(old, new)
    for node, value, _ in found.readers.sizes:
        if not basis.is_kept(value):
            with edit.before(node):
                edit.replace(node, edit.repeat(node, moved | ways))
    _keep_values(edit, found, moved)


def _repeat_join(edit: Edit, found: Rescaled, node: fx.Node, moved: dict[fx.Node, fx.Node]) -> None:
    own: dict[fx.Node, fx.Node] = {}
    for source, _ in found.basis.stream.joins[node]:
        if (node, source) in found.stored:
            value = _stored_value(found, node, source, edit.constant(source))
            own[source] = edit.parameter(layers.parameter_name(source, source.name), value, like=source)
    if own or any(source in moved for source in node.all_input_nodes):
        moved[node] = edit.repeat(node, moved | own)


def _keep_values(edit: Edit, found: Rescaled, moved: dict[fx.Node, fx.Node]) -> None:
    """Values that are read as they were, by what reads them from outside."""
    basis, readers = found.basis, found.readers
    read = {value for _, value in (*readers.norms, *readers.taps)}
    read |= {value for one in readers.layers if basis.is_kept(value := one.value)}
    read |= {value for _, value, _ in readers.sizes if basis.is_kept(value)}
    for value in sorted(read & moved.keys()):
        new, axis = moved[value], basis.stream.axes[value]
        scale, offset = basis.scales[value], basis.offsets.get(value)
        with edit.before(value):
            if scale is not None:
                factor = edit.parameter(f"{value.name}.scale", channels_along(scale, value, axis), like=value)
                new = edit.call(_aten.mul.Tensor, new, factor)
            if offset is not None:
                added = edit.parameter(f"{value.name}.shift", channels_along(offset, value, axis), like=value)
                new = edit.call(_aten.add.Tensor, new, added)
            edit.replace(value, new)


def _stored_value(found: Rescaled, join: fx.Node, stored: fx.Node, old: Tensor) -> Tensor:
    axis, basis = found.stored[join, stored], found.basis
    scale, offset = basis.scales[join], basis.stored.get((join, stored))
    new = old if offset is None else old - channels_along(offset, stored, axis)
    return new if scale is None else new / channels_along(scale, stored, axis)
