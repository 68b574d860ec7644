"""Convolutions of one to three axes, with and without a batch, forward and transposed."""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, dtype_of, fixed, rank_of, shape_of, wide

Converter = Callable[..., Any]

_LAYOUTS = {1: ("NCW", "OIW"), 2: ("NCHW", "OIHW"), 3: ("NCDHW", "OIDHW")}


def _conv(
    make: Maker,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | str = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Any:
    axes = rank_of(weight) - 2
    steps, spread = each(stride, axes), each(dilation, axes)
    if isinstance(padding, str):
        before, after = _named_padding(padding, [_size(s) for s in shape_of(weight)[2:]], spread)
    else:
        before = after = each(padding, axes)
    return convolved(make, x, weight, bias, steps, (before, after), spread, groups)


def each(value: Sequence[int] | int, axes: int) -> list[int]:
    """One number an axis."""
    if isinstance(value, int):
        return [value] * axes
    return list(value) * axes if len(value) == 1 else list(value)


def _size(size: Any) -> int:
    known = fixed(size)
    if known is None:
        raise Unsupported("a kernel of free size")
    return known


def _named_padding(name: str, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    totals = [d * (k - 1) if name == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    return [t // 2 for t in totals], [t - t // 2 for t in totals]  # an odd one has more behind


def convolved(
    make: Maker,
    x: Any,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: tuple[list[int], list[int]],
    dilation: list[int],
    groups: int,
) -> Any:
    """``relax.nn.conv*d`` and the bias; half-precision sums are kept in float32 until both are added."""
    from tvm import relax

    axes = rank_of(weight) - 2
    is_single = rank_of(x) == axes + 1
    if is_single:
        x = make.reshape(x, [1, *shape_of(x)])
    data, kernel = _LAYOUTS[axes]
    dtype = dtype_of(x)
    made = make.emit(
        getattr(relax.op.nn, f"conv{axes}d")(
            x,
            weight,
            strides=stride,
            padding=[*padding[0], *padding[1]],
            dilation=dilation,
            groups=groups,
            data_layout=data,
            kernel_layout=kernel,
            out_dtype=wide(dtype) if wide(dtype) != dtype else None,
        )
    )
    if bias is not None:
        offset = make.reshape(make.cast(bias, dtype_of(made)), [1, shape_of(bias)[0], *[1] * axes])
        made = make.emit(relax.op.add(made, offset))
    made = make.result(made)
    return make.reshape(made, shape_of(made)[1:]) if is_single else made


def _transposed(
    make: Maker,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
) -> Any:
    """A convolution of the input with zeros between its elements, by the flipped kernel.

    relax.nn.conv*d_transpose knows no dilation; in this form it has the kernels of plain convolutions, too.
    """
    axes = rank_of(weight) - 2
    steps, spread, extra = each(stride, axes), each(dilation, axes), each(output_padding, axes)
    if rank_of(x) == axes + 1:
        batched = _transposed(
            make, make.reshape(x, [1, *shape_of(x)]), weight, bias, stride, padding, output_padding, groups, dilation
        )
        return make.reshape(batched, shape_of(batched)[1:])
    kernel = [_size(s) for s in shape_of(weight)[2:]]
    border = [d * (k - 1) - p for d, k, p in zip(spread, kernel, each(padding, axes), strict=True)]
    wide_input = _spread_out(make, x, steps, border, extra)
    zero = [0] * axes
    return convolved(make, wide_input, _flipped(make, weight, groups), bias, [1] * axes, (zero, zero), spread, groups)


def _spread_out(make: Maker, x: Any, steps: list[int], border: list[int], extra: list[int]) -> Any:
    """The input with step - 1 zeros between neighbours and a border, which may be negative."""
    from tvm import tirx

    shape = shape_of(x)
    sizes = shape[2:]
    out = [(n - 1) * s + 1 + 2 * b + e for n, s, b, e in zip(sizes, steps, border, extra, strict=True)]

    def element(index: Any, own: Any, a: Any) -> Any:
        places = [i - b for i, b in zip(index[2:], border, strict=True)]
        inside = [
            test
            for p, s, n in zip(places, steps, own, strict=True)
            for test in (p >= 0, p < (n - 1) * s + 1, tirx.floormod(p, s) == 0)
        ]
        source = (tirx.floordiv(p, s) for p, s in zip(places, steps, strict=True))
        return tirx.if_then_else(tirx.all(*inside), a(*index[:2], *source), tirx.const(0, a.dtype))

    return make.compute([*shape[:2], *out], element, x, sizes=sizes, name="spread_out")


def _flipped(make: Maker, weight: Any, groups: int) -> Any:
    """(in, out / groups, *kernel) as (out, in / groups, *flipped kernel)."""
    from tvm import tirx

    inputs, outputs, *kernel = (_size(s) for s in shape_of(weight))
    per_group = inputs // groups

    def element(index: Any, _: Any, w: Any) -> Any:
        group, channel = tirx.floordiv(index[0], outputs), tirx.floormod(index[0], outputs)
        return w(group * per_group + index[1], channel, *(k - 1 - i for i, k in zip(index[2:], kernel, strict=True)))

    return make.compute([outputs * groups, per_group, *kernel], element, weight, name="flipped")


def _convolution(
    make: Maker,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if transposed:
        return _transposed(make, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(make, x, weight, bias, stride, padding, dilation, groups)


CONVOLUTION: dict[str, Converter] = {
    **{f"aten.conv{n}d.{overload}": _conv for n in (1, 2, 3) for overload in ("default", "padding")},
    "aten.conv_transpose1d.default": _transposed,
    "aten.conv_transpose2d.input": _transposed,
    "aten.conv_transpose3d.input": _transposed,
    "aten.convolution.default": _convolution,
}
