"""Interpolation of images. Where to read and with what weights comes from torch itself.

Each axis is resized on its own, and linearly in the input: torch's kernel applied to the positions of an axis gives
the positions that nearest-neighbour interpolation reads, and applied to the columns of the identity the matrix of
every other kind. So the coordinates round as torch's do, whatever the scale and the alignment of corners.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, dtype_of, fixed, rank_of, shape_of
from flowopt.lowering.tvm.importing.products import product

Converter = Callable[..., Any]
Scales = Sequence[float] | None


def _nearest(axes: int, kind: str) -> Converter:
    """``upsample_nearest*d.vec`` and ``.default``: the recorded shape is the size."""

    def resize(make: Maker, x: Any, size: Any, *scales: Any) -> Any:
        given = _scales(scales, axes)
        for k in range(axes):
            axis = rank_of(x) - axes + k
            x = _nearest_axis(make, x, axis, make.out_shape[axis], given[k], kind)
        return x

    return resize


def _scales(given: Sequence[Any], axes: int) -> list[float | None]:
    """Scales come as one list (``.vec``) or one by one (``.default``)."""
    flat = list(given[0]) if given and isinstance(given[0], (list, tuple)) else list(given)
    return flat if len(flat) == axes else [None] * axes


def _nearest_axis(make: Maker, x: Any, axis: int, length: Any, scale: float | None, kind: str) -> Any:
    from tvm import tirx

    shape = shape_of(x)
    size, out = fixed(shape[axis]), fixed(length)
    target = [*shape[:axis], length, *shape[axis + 1 :]]
    if size is None or out is None:
        if scale is None or not float(scale).is_integer():
            raise Unsupported("a free size and a scale that is no whole number")
        size, out = 1, int(scale)
        is_whole = kind == "nearest-exact" or out & (out - 1) == 0
        if not is_whole:
            raise Unsupported("a free size and a scale that is no power of two")
    # torch's positions are products in the dtype of its arithmetic, a little below the quotient now and then.
    line = torch.arange(size, dtype=torch.float64 if dtype_of(x) == "float64" else torch.float32)
    found = _resized(line.reshape(1, 1, size), out, scale, kind).reshape(out).long()
    times = out // size
    if out % size == 0 and torch.equal(found, torch.arange(out) // times):
        return make.compute(
            target,
            lambda i, _, a: a(*i[:axis], tirx.floordiv(i[axis], times), *i[axis + 1 :]),
            x,
            name="nearest",
        )
    places = make.constant(found.numpy(), "int64")
    return make.compute(
        target, lambda i, _, a, at: a(*i[:axis], at(i[axis]), *i[axis + 1 :]), x, places, name="nearest"
    )


def _resized(line: Tensor, out: int, scale: float | None, kind: str) -> Tensor:
    operator: Callable[..., Tensor] = {
        "nearest": torch.ops.aten.upsample_nearest1d.default,
        "nearest-exact": torch.ops.aten._upsample_nearest_exact1d.default,
    }[kind]
    return operator(line, [out], scale)


def _smooth(axes: int, operator: Callable[..., Tensor]) -> Converter:
    """Linear, cubic and antialiased kinds: ``operator(image, size, align_corners, height_scale, width_scale)``."""

    def resize(make: Maker, x: Any, size: Any, align_corners: bool, *scales: Any) -> Any:
        given = _scales(scales, axes)
        made = make.cast(x, make.work_dtype)
        for k in range(axes):
            axis = rank_of(x) - axes + k
            before, after = fixed(shape_of(x)[axis]), fixed(make.out_shape[axis])
            if before is None or after is None:
                raise Unsupported("a free size")
            identity = torch.eye(before, dtype=torch.float64).reshape(1, 1, before, before)
            matrix = operator(identity, [before, after], align_corners, None, given[k]).reshape(before, after)
            made = _along(make, made, axis, make.constant(matrix.numpy(), dtype_of(made)))
        return make.result(made)

    return resize


def _along(make: Maker, x: Any, axis: int, matrix: Any) -> Any:
    """The product of a matrix with one axis."""
    rank = rank_of(x)
    order = [a for a in range(rank) if a != axis] + [axis]
    back = sorted(range(rank), key=lambda k: order[k])
    return make.permute(product(make, make.permute(x, order), matrix), back)


_LINEAR = torch.ops.aten.upsample_bilinear2d.default
_SMOOTH: dict[str, tuple[int, Any]] = {
    "upsample_linear1d": (1, _LINEAR),
    "upsample_bilinear2d": (2, _LINEAR),
    "upsample_trilinear3d": (3, _LINEAR),
    "upsample_bicubic2d": (2, torch.ops.aten.upsample_bicubic2d.default),
    "_upsample_bilinear2d_aa": (2, torch.ops.aten._upsample_bilinear2d_aa.default),
    "_upsample_bicubic2d_aa": (2, torch.ops.aten._upsample_bicubic2d_aa.default),
}

RESIZING: dict[str, Converter] = {
    **{f"aten.upsample_nearest{n}d.{o}": _nearest(n, "nearest") for n in (1, 2, 3) for o in ("vec", "default")},
    **{
        f"aten._upsample_nearest_exact{n}d.{o}": _nearest(n, "nearest-exact")
        for n in (1, 2, 3)
        for o in ("vec", "default")
    },
    **{f"aten.{name}.{o}": _smooth(*kind) for name, kind in _SMOOTH.items() for o in ("vec", "default")},
}
