"""Legalisation of relax's convolutions into the stages that the schedule rule of convolutions arranges.

The weights are packed by a kernel of their own, which depends on nothing else: lifted out of the function with the
other work on parameters, it runs once, at build time. The convolution itself is annotated as one behind which
elementwise operators fuse: bias, residual and activation are applied to a tile while it is in the first cache.

Taken as they are written by default (and so unscheduled): other layouts than the first channels (NCHW, OIHW), integers,
transposed convolutions with a dilation, and shapes of unknown channel counts.
"""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.cpu.convolution_geometry import Axis, Geometry
from flowopt.lowering.tvm.cpu.convolution_stages import (
    CHANNELS_FIRST,
    PIXELS_FIRST,
    channel_convolution,
    packed_weight,
    row_convolution,
)
from flowopt.lowering.tvm.cpu.tiles import channel_tile, row_tile
from flowopt.lowering.tvm.cpu.vector_registers import VectorRegisters, vector_registers

# Whole vectors of the weights would be mostly zeros below this many output channels of a group.
FEW_CHANNELS = 4
# What a core keeps close: an image larger than that is read once, not once for each block of output channels.
NEAR_BYTES = 1 << 19

_LAYOUTS = {
    "relax.nn.conv1d": ("NCW", "OIW"),
    "relax.nn.conv2d": ("NCHW", "OIHW"),
    "relax.nn.conv3d": ("NCDHW", "OIDHW"),
    "relax.nn.conv1d_transpose": ("NCW", "IOW"),
    "relax.nn.conv2d_transpose": ("NCHW", "IOHW"),
    "relax.nn.conv3d_transpose": ("NCDHW", "IODHW"),
}
# relax's number for a kernel that elementwise operators may be fused behind.
_OUT_ELEMENTWISE_FUSABLE = 4
_SUM_DTYPES = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


def convolution(block_builder: Any, call: Any) -> Any:
    """The kernel call that computes a convolution, on the current target.

    Args:
        block_builder: to which the kernels are added.
        call: of one of relax's convolutions.
    """
    from tvm.target import Target

    geometry = _geometry(call)
    if geometry is None:
        return call.op.get_attr("FLegalize")(block_builder, call)
    registers = vector_registers(Target.current(allow_none=False))
    if geometry.out_channels <= FEW_CHANNELS and not geometry.is_transposed:
        return _by_rows(block_builder, call, geometry, registers)
    return _by_channels(block_builder, call, geometry, registers)


LEGALIZATIONS: dict[str, Callable[[Any, Any], Any]] = dict.fromkeys(_LAYOUTS, convolution)


def _by_channels(block_builder: Any, call: Any, geometry: Geometry, registers: VectorRegisters) -> Any:
    height, width = _image(geometry)
    lanes = registers.lanes(geometry.sum_dtype)
    # A block that hangs over the edge of a group would reach into the next one.
    whole_blocks = geometry.groups > 1
    tile = channel_tile(geometry.out_channels, height, width, lanes, registers.count, whole_blocks)
    packed = block_builder.emit(
        block_builder.call_te(
            lambda weight: packed_weight(weight, geometry, tile.channels),
            call.args[1],
            primfunc_name_hint="pack_weight",
        )
    )
    order = _order(geometry)
    return block_builder.call_te(
        lambda data, weight: channel_convolution(data, weight, geometry.of(data), tile, order),
        call.args[0],
        packed,
        primfunc_name_hint=_name(call),
        primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
    )


def _by_rows(block_builder: Any, call: Any, geometry: Geometry, registers: VectorRegisters) -> Any:
    height, width = _image(geometry)
    lanes = registers.lanes(geometry.sum_dtype)
    tile = row_tile(geometry.out_channels, height, width, lanes, registers.count)
    return block_builder.call_te(
        lambda data, weight: row_convolution(data, weight, geometry.of(data), tile),
        *call.args,
        primfunc_name_hint=_name(call),
        primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
    )


def _geometry(call: Any) -> Geometry | None:
    """What is to be computed; None where it is left to the default legalisation."""
    attributes, name = call.attrs, call.op.name
    data, weight = (argument.ty for argument in call.args)
    layouts = (attributes.data_layout, attributes.kernel_layout)
    if layouts != _LAYOUTS[name] or attributes.out_layout != attributes.data_layout:
        return None
    if data.shape is None or weight.shape is None or str(data.dtype) not in _SUM_DTYPES:
        return None
    transposed = name.endswith("_transpose")
    if transposed and any(int(d) != 1 for d in attributes.dilation):
        return None
    kernel = [size for size in map(_static, weight.shape) if size is not None]
    if len(kernel) < len(weight.shape):
        return None
    rank, groups = len(kernel) - 2, int(attributes.groups)
    return Geometry(
        batch=data.shape[0],
        groups=groups,
        in_channels=kernel[0] // groups if transposed else kernel[1],
        out_channels=kernel[1] if transposed else kernel[0] // groups,
        axes=tuple(
            Axis(
                size=data.shape[2 + i],
                kernel=kernel[2 + i],
                stride=int(attributes.strides[i]),
                dilation=int(attributes.dilation[i]),
                before=int(attributes.padding[i]),
                after=int(attributes.padding[rank + i]) - (int(attributes.output_padding[i]) if transposed else 0),
                transposed=transposed,
            )
            for i in range(rank)
        ),
        sum_dtype=_SUM_DTYPES[str(data.dtype)],
        out_dtype=str(call.ty.dtype),
    )


def _image(geometry: Geometry) -> tuple[int | None, int | None]:
    """Rows and columns of the output of one phase, None where they are free; an output without rows has one."""
    sizes = [_static(axis.positions) for axis in geometry.axes]
    return (1 if len(sizes) == 1 else sizes[-2]), sizes[-1]


def _order(geometry: Geometry) -> str:
    """Whether tiles of all channels of a pixel follow each other, or those of all pixels of a channel block."""
    image = geometry.in_channels * 4
    for axis in geometry.axes:
        size = _static(axis.size)
        if size is None:
            return PIXELS_FIRST
        image *= size
    weights = geometry.in_channels * geometry.out_channels * 4
    for axis in geometry.axes:
        weights *= axis.kernel
    return CHANNELS_FIRST if weights > image and image <= NEAR_BYTES else PIXELS_FIRST


def _static(size: Any) -> int | None:
    from tvm import tirx

    if isinstance(size, int):
        return size
    return int(size.value) if isinstance(size, tirx.IntImm) else None


def _name(call: Any) -> str:
    return str(call.op.name).rsplit(".", 1)[1]
