"""Pooling over windows, in one to three axes, with and without a batch.

The plain forms are ``relax.nn`` operators, which kernels are written for. Windows that hang over the end
(``ceil_mode``) and those of adaptive pooling are loop nests here: Relax counts the outputs of ``ceil_mode`` otherwise,
and the elements of a window without padding, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.convolution import each
from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, dtype_of, fixed, rank_of, shape_of
from flowopt.lowering.tvm.importing.reductions import mean

Converter = Callable[..., Any]
Windows = Callable[[Sequence[Any], Sequence[Any]], list[tuple[Any, Any]]]

_LAYOUTS = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def _max_pool(axes: int) -> Converter:
    def pool(
        make: Maker,
        x: Any,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Any:
        kernel = each(kernel_size, axes)
        steps = each(stride, axes) if stride else kernel
        spread, border = each(dilation, axes), each(padding, axes)

        def windows(index: Sequence[Any], _: Sequence[Any]) -> list[tuple[Any, Any]]:
            return [(i * s - b, None) for i, s, b in zip(index, steps, border, strict=True)]

        return _reduced(make, x, axes, kernel, windows, spread, is_max=True)

    return pool


def _max_pool_with_places(axes: int) -> Converter:
    return lambda make, *arguments: (_max_pool(axes)(make, *arguments), None)


def _relax_pool(
    make: Maker,
    name: str,
    x: Any,
    kernel: list[int],
    steps: list[int],
    border: list[int],
    spread: list[int],
    **more: Any,
) -> Any:
    from tvm import relax

    axes = len(kernel)
    is_single = rank_of(x) == axes + 1
    source = make.reshape(x, [1, *shape_of(x)]) if is_single else x
    made = make.emit(
        getattr(relax.op.nn, name)(
            source,
            pool_size=kernel,
            strides=steps,
            padding=[*border, *border],
            dilation=spread,
            layout=_LAYOUTS[axes],
            **more,
        )
    )
    return make.reshape(made, make.out_shape) if is_single else made


def _reduced(
    make: Maker, x: Any, axes: int, most: Sequence[Any], windows: Windows, spread: Sequence[int], *, is_max: bool
) -> Any:
    """Largest or sum over windows of at most ``most`` elements; ``windows`` says where each begins and ends."""
    from tvm import te, tirx

    shape = shape_of(x)
    lead = len(shape) - axes
    # Not te.max: it starts from the lowest finite number, and loses a NaN that is not the last.
    largest = te.comm_reducer(
        lambda a, b: tirx.Select(tirx.any(a > b, tirx.isnan(a)), a, b),
        lambda dtype: _lowest(tirx, dtype),
        name="largest",
    )

    def element(index: Any, own: Any, a: Any) -> Any:
        offsets = [te.reduce_axis((0, m), name=f"r{k}") for k, m in enumerate(most)]
        bounds = windows(index[lead:], own)
        places = [b + r * d for (b, _), r, d in zip(bounds, offsets, spread, strict=True)]
        inside = [t for p, n in zip(places, own, strict=True) for t in (p >= 0, p < n)]
        inside += [p < end for p, (_, end) in zip(places, bounds, strict=True) if end is not None]
        nothing = _lowest(tirx, a.dtype) if is_max else tirx.const(0, a.dtype)
        value = tirx.if_then_else(tirx.all(*inside), a(*index[:lead], *places), nothing)
        return (largest if is_max else te.sum)(value, axis=offsets)

    return make.compute(make.out_shape, element, x, sizes=shape[lead:], name="max_pool" if is_max else "sum_pool")


def _lowest(tirx: Any, dtype: Any) -> Any:
    return -tirx.infinity(dtype) if "float" in str(dtype) else tirx.min_value(dtype)


def _avg_pool(axes: int) -> Converter:
    def pool(
        make: Maker,
        x: Any,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        kernel = each(kernel_size, axes)
        steps = each(stride, axes) if stride else kernel
        border = each(padding, axes)
        source = make.cast(x, make.work_dtype)
        is_plain = not ceil_mode and divisor_override is None and (count_include_pad or not any(border))
        if is_plain:
            made = _relax_pool(
                make, f"avg_pool{axes}d", source, kernel, steps, border, [1] * axes, count_include_pad=count_include_pad
            )
            return make.result(made)

        def windows(index: Sequence[Any], _: Sequence[Any]) -> list[tuple[Any, Any]]:
            return [(i * s - b, None) for i, s, b in zip(index, steps, border, strict=True)]

        def counted(index: Sequence[Any], own: Sequence[Any]) -> Any:
            from tvm import tirx

            total: Any = 1
            for i, s, b, k, n in zip(index, steps, border, kernel, own, strict=True):
                begin = i * s - b
                if count_include_pad:
                    total = (tirx.min(begin + k, n + b) - begin) * total
                else:
                    total = (tirx.min(begin + k, n) - tirx.max(begin, tirx.IntImm("int64", 0))) * total
            return divisor_override if divisor_override is not None else total

        total = _reduced(make, source, axes, kernel, windows, [1] * axes, is_max=False)
        return make.result(_divided(make, total, axes, shape_of(x)[-axes:], counted))

    return pool


def _divided(make: Maker, total: Any, axes: int, sizes: Sequence[Any], count: Callable[..., Any]) -> Any:
    from tvm import tirx

    dtype = dtype_of(total)

    def element(index: Any, own: Any, a: Any) -> Any:
        return a(*index) / tirx.Cast(dtype, tirx.IntImm("int64", 0) + count(index[-axes:], own))

    return make.compute(shape_of(total), element, total, sizes=sizes, name="avg_pool")


def _adaptive_windows(outputs: Sequence[int]) -> Windows:
    def windows(index: Sequence[Any], own: Sequence[Any]) -> list[tuple[Any, Any]]:
        from tvm import tirx

        return [
            (tirx.floordiv(i * n, o), tirx.floordiv((i + 1) * n + o - 1, o))
            for i, n, o in zip(index, own, outputs, strict=True)
        ]

    return windows


def _adaptive_avg_pool(axes: int) -> Converter:
    def pool(make: Maker, x: Any, output_size: Sequence[int]) -> Any:
        source = make.cast(x, make.work_dtype)
        outputs = each(output_size, axes)
        if all(o == 1 for o in outputs):
            return make.result(mean(make, source, list(range(-axes, 0)), True))
        windows = _adaptive_windows(outputs)
        total = _adaptive(make, source, axes, outputs, is_max=False)

        def counted(index: Sequence[Any], own: Sequence[Any]) -> Any:
            count: Any = 1
            for begin, end in windows(index, own):
                count = (end - begin) * count
            return count

        return make.result(_divided(make, total, axes, shape_of(x)[-axes:], counted))

    return pool


def _adaptive_max_pool(axes: int) -> Converter:
    def pool(make: Maker, x: Any, output_size: Sequence[int]) -> Any:
        return _adaptive(make, x, axes, each(output_size, axes), is_max=True), None

    return pool


def _adaptive(make: Maker, x: Any, axes: int, outputs: Sequence[int], *, is_max: bool) -> Any:
    sizes = shape_of(x)[-axes:]
    known = [fixed(n) for n in sizes]
    most = [-(-n // o) + (n % o != 0) for n, o in zip(known, outputs, strict=True) if n is not None]
    if len(most) != axes:
        raise Unsupported("adaptive pooling of a free size")
    return _reduced(make, x, axes, most, _adaptive_windows(outputs), [1] * axes, is_max=is_max)


POOLING: dict[str, Converter] = {
    **{f"aten.max_pool{n}d.default": _max_pool(n) for n in (1, 2, 3)},
    **{f"aten.max_pool{n}d_with_indices.default": _max_pool_with_places(n) for n in (2, 3)},
    **{f"aten.avg_pool{n}d.default": _avg_pool(n) for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d.default": _adaptive_avg_pool(n) for n in (1, 2, 3)},
    **{f"aten._adaptive_avg_pool{n}d.default": _adaptive_avg_pool(n) for n in (2, 3)},
    **{f"aten.adaptive_max_pool{n}d.default": _adaptive_max_pool(n) for n in (1, 2, 3)},
}
