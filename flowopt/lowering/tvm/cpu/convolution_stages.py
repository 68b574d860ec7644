"""A convolution as tensor expressions whose stages the schedule rule of convolutions arranges.

``padded`` is the input with its zeros, where it needs any; ``sums`` is the result in the order in which tiles are
computed; ``result`` puts it in the order of the output, and what follows the convolution is fused behind it. Nothing
is tested or clamped in the inner loops: the padded input is as large as whole tiles read, and ``sums`` as large as
whole tiles are.

Vectors run over output channels, so the weights are packed with a block of these innermost. Where a group has few
output channels (a depthwise convolution has one) they run along the last dimension of the image instead, of which
``padded`` then holds the positions of each residue of the stride next to each other.
"""

from typing import Any

from flowopt.lowering.tvm.cpu.convolution_geometry import Geometry
from flowopt.lowering.tvm.cpu.tiles import Tile

# The annotation by which the schedule rule finds the block of the sums; its values say how to order the tiles.
ANNOTATION = "flowopt.convolution"
PIXELS_FIRST = "pixels_first"
CHANNELS_FIRST = "channels_first"
ROWS = "rows"
PADDED = "flowopt.convolution_padded"


def packed_weight(weight: Any, geometry: Geometry, channels: int) -> Any:
    """The weights, (groups, phases ..., blocks, in_channels, taps ..., channels), zero beyond the last channel.

    Args:
        weight: (out, in / groups, ...) of a plain convolution, (in, out / groups, ...) of a transposed one.
        geometry: the convolution's.
        channels: output channels of a block.
    """
    from tvm import te, tirx

    rank = len(geometry.axes)
    blocks = -(-geometry.out_channels // channels)
    phases = [axis.phases for axis in geometry.axes]
    taps = [axis.taps for axis in geometry.axes]

    def value(*index: Any) -> Any:
        group, phase, block, source = index[0], index[1 : 1 + rank], index[1 + rank], index[2 + rank]
        tap, lane = index[3 + rank : 3 + 2 * rank], index[-1]
        channel = block * channels + lane
        places = [axis.weight(r, t) for axis, r, t in zip(geometry.axes, phase, tap, strict=True)]
        exists = [channel < geometry.out_channels]
        exists += [k < axis.kernel for axis, k in zip(geometry.axes, places, strict=True) if axis.transposed]
        if geometry.is_transposed:
            element = weight(group * geometry.in_channels + source, channel, *places)
        else:
            element = weight(group * geometry.out_channels + channel, source, *places)
        zero = tirx.const(0, geometry.sum_dtype)
        return tirx.if_then_else(tirx.all(*exists), element.astype(geometry.sum_dtype), zero)

    shape = (geometry.groups, *phases, blocks, geometry.in_channels, *taps, channels)
    return te.compute(shape, value, name="packed_weight")


def channel_convolution(data: Any, packed: Any, geometry: Geometry, tile: Tile, order: str) -> Any:
    """The convolution whose vectors run over output channels.

    Args:
        data: (batch, groups * in_channels, ...).
        packed: what :func:`packed_weight` makes, with blocks of ``tile.channels``.
        geometry: the convolution's.
        tile: what is computed at once.
        order: PIXELS_FIRST or CHANNELS_FIRST, whichever is not to be read again for each tile of the other.
    """
    from tvm import te

    rank = len(geometry.axes)
    extents = _tile_extents(rank, tile.height, tile.width)
    tiles = [_divided(axis.positions, extent) for axis, extent in zip(geometry.axes, extents, strict=True)]
    phases = [axis.phases for axis in geometry.axes]
    blocks = -(-geometry.out_channels // tile.channels)
    source = _padded(data, geometry, [count * extent for count, extent in zip(tiles, extents, strict=True)])
    channel = te.reduce_axis((0, geometry.in_channels), "channel")
    taps = [te.reduce_axis((0, axis.taps), "tap") for axis in geometry.axes]

    def total(*index: Any) -> Any:
        batch, group, phase, block = index[0], index[1], index[2 : 2 + rank], index[2 + rank]
        outer, inner, lane = index[3 + rank : 3 + 2 * rank], index[3 + 2 * rank : 3 + 3 * rank], index[-1]
        reads = [
            axis.read(r, o * extent + i, t)
            for axis, r, o, extent, i, t in zip(geometry.axes, phase, outer, extents, inner, taps, strict=True)
        ]
        value = source(batch, group * geometry.in_channels + channel, *reads).astype(geometry.sum_dtype)
        return te.sum(value * packed(group, *phase, block, channel, *taps, lane), axis=[channel, *taps])

    shape = (geometry.batch, geometry.groups, *phases, blocks, *tiles, *extents, tile.channels)
    sums = te.compute(shape, total, name="sums", attrs={ANNOTATION: order})

    def value(batch: Any, channel: Any, *place: Any) -> Any:
        group, member = _member(channel, geometry)
        phase = [p % count for p, count in zip(place, phases, strict=True)]
        position = [p // count for p, count in zip(place, phases, strict=True)]
        outer = [p // extent for p, extent in zip(position, extents, strict=True)]
        inner = [p % extent for p, extent in zip(position, extents, strict=True)]
        block, lane = member // tile.channels, member % tile.channels
        return sums(batch, group, *phase, block, *outer, *inner, lane).astype(geometry.out_dtype)

    return te.compute(_result_shape(geometry), value, name="result")


def row_convolution(data: Any, weight: Any, geometry: Geometry, tile: Tile) -> Any:
    """The plain convolution whose vectors run along the last dimension of the image.

    Args:
        data: (batch, groups * in_channels, ...).
        weight: (groups * out_channels, in_channels, ...).
        geometry: the convolution's; not transposed.
        tile: what is computed at once; ``tile.channels`` are all of a group's.
    """
    from tvm import te

    rank = len(geometry.axes)
    extents = _tile_extents(rank, tile.height, tile.width)
    tiles = [_divided(axis.positions, extent) for axis, extent in zip(geometry.axes, extents, strict=True)]
    stride = geometry.axes[-1].step
    source = _padded(data, geometry, [n * extent for n, extent in zip(tiles, extents, strict=True)], stride)
    channel = te.reduce_axis((0, geometry.in_channels), "channel")
    taps = [te.reduce_axis((0, axis.taps), "tap") for axis in geometry.axes]

    def total(*index: Any) -> Any:
        batch, group = index[0], index[1]
        outer, member, inner = index[2 : 2 + rank], index[2 + rank], index[3 + rank :]
        reads = [
            axis.read(0, o * extent + i, t)
            for axis, o, extent, i, t in zip(geometry.axes, outer, extents, inner, taps, strict=True)
        ]
        if stride > 1:
            shift = taps[-1] * geometry.axes[-1].dilation
            reads[-1:] = [shift % stride, outer[-1] * extents[-1] + inner[-1] + shift // stride]
        value = source(batch, group * geometry.in_channels + channel, *reads).astype(geometry.sum_dtype)
        factor = weight(group * geometry.out_channels + member, channel, *taps).astype(geometry.sum_dtype)
        return te.sum(value * factor, axis=[channel, *taps])

    shape = (geometry.batch, geometry.groups, *tiles, geometry.out_channels, *extents)
    sums = te.compute(shape, total, name="sums", attrs={ANNOTATION: ROWS})

    def value(batch: Any, channel: Any, *place: Any) -> Any:
        outer = [p // extent for p, extent in zip(place, extents, strict=True)]
        inner = [p % extent for p, extent in zip(place, extents, strict=True)]
        group, member = _member(channel, geometry)
        return sums(batch, group, *outer, member, *inner).astype(geometry.out_dtype)

    return te.compute(_result_shape(geometry), value, name="result")


def _padded(data: Any, geometry: Geometry, positions: list[Any], residues: int = 1) -> Any:
    """The input with zeros as far as the tiles read; the input itself where they read nothing else.

    With ``residues`` above 1, the last dimension is stored as (residues, size / residues).
    """
    from tvm import sym, te, tirx

    sizes = [axis.padded_size(count) for axis, count in zip(geometry.axes, positions, strict=True)]
    columns = _divided(sizes[-1], residues)
    if residues > 1:
        sizes[-1] = columns * residues
    channels = geometry.groups * geometry.in_channels
    analyzer = sym.Analyzer()
    fits = all(
        axis.zeros_before == 0 and analyzer.can_prove(size <= axis.size)
        for axis, size in zip(geometry.axes, sizes, strict=True)
    )

    def value(batch: Any, channel: Any, *place: Any) -> Any:
        sources = [p - axis.zeros_before for p, axis in zip(place, geometry.axes, strict=True)]
        inside = [s >= 0 for s, axis in zip(sources, geometry.axes, strict=True) if axis.zeros_before > 0]
        inside += [s < axis.size for s, axis in zip(sources, geometry.axes, strict=True)]
        element = data(batch, channel, *sources).astype(geometry.sum_dtype)
        return tirx.if_then_else(tirx.all(*inside), element, tirx.const(0, geometry.sum_dtype))

    source = data
    if not fits or str(data.dtype) != geometry.sum_dtype:
        source = te.compute((geometry.batch, channels, *sizes), value, name="padded", attrs={PADDED: 1})
    if residues == 1:
        return source
    # Not in one stage with the zeros: a copy that leaves values out is done in vectors only if it tests nothing.
    return te.compute(
        (geometry.batch, channels, *sizes[:-1], residues, columns),
        lambda *index: source(*index[:-2], index[-1] * residues + index[-2]),
        name="columns",
        attrs={PADDED: 1},
    )


def _member(channel: Any, geometry: Geometry) -> tuple[Any, Any]:
    """The group of an output channel, and its place in it."""
    if geometry.groups == 1:
        return 0, channel
    return channel // geometry.out_channels, channel % geometry.out_channels


def _tile_extents(rank: int, height: int, width: int) -> list[int]:
    return [width] if rank == 1 else [1] * (rank - 2) + [height, width]


def _result_shape(geometry: Geometry) -> tuple[Any, ...]:
    return (geometry.batch, geometry.groups * geometry.out_channels, *(axis.output for axis in geometry.axes))


def _divided(value: Any, divisor: int) -> Any:
    """The quotient, rounded up, in the form in which TVM proves that the last value's quotient is below it."""
    return (value - 1) // divisor + 1
