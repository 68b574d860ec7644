"""Padding by a constant, by reflection, by the edge and around."""

from collections.abc import Callable, Sequence
from typing import Any

from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    as_size,
    rank_of,
    shape_of,
)

Converter = Callable[..., Any]


def _pad(make: Maker, x: Any, pad: Sequence[Value], mode: str = "constant", value: float | None = None) -> Any:
    return padded(make, x, pad, mode, value)


def _constant_pad(make: Maker, x: Any, pad: Sequence[Value], value: float = 0) -> Any:
    return padded(make, x, pad, "constant", value)


def _padded_by(mode: str) -> Converter:
    return lambda make, x, pad: padded(make, x, pad, mode, None)


def padded(make: Maker, x: Any, pad: Sequence[Value], mode: str, value: float | None) -> Any:
    """``pad`` as torch has it: pairs of before and after, the last axis first; negative ones crop."""
    from tvm import tirx

    shape, rank = shape_of(x), rank_of(x)
    before = {rank - 1 - k: pad[2 * k] for k in range(len(pad) // 2)}
    axes = [a for a in before if not (pad[2 * (rank - 1 - a)] == 0 and pad[2 * (rank - 1 - a) + 1] == 0)]
    if not axes:
        return x
    out = list(shape)
    for axis in axes:
        k = 2 * (rank - 1 - axis)
        out[axis] = shape[axis] + as_size(pad[k]) + as_size(pad[k + 1])
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise Unsupported(f"padding by {mode!r}")

    def element(index: Any, own: Any, a: Any) -> Any:
        place, inside = list(index), []
        for k, axis in enumerate(axes):
            size = own[2 * k + 1]
            at = index[axis] - own[2 * k]
            if mode == "constant":
                inside += [at >= 0, at < size]
            elif mode == "replicate":
                at = tirx.max(tirx.min(at, size - 1), as_size(0))
            elif mode == "circular":
                at = tirx.floormod(at, size)
            else:
                at = size - 1 - tirx.abs(size - 1 - tirx.abs(at))
            place[axis] = at
        if not inside:
            return a(*place)
        # if_then_else, unlike Select, does not read outside.
        return tirx.if_then_else(tirx.all(*inside), a(*place), tirx.const(value or 0, a.dtype))

    sizes = [s for axis in axes for s in (as_size(before[axis]), shape[axis])]
    return make.compute(out, element, x, sizes=sizes, name="pad")


PADDING: dict[str, Converter] = {
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _constant_pad,
    **{f"aten.reflection_pad{n}d.default": _padded_by("reflect") for n in (1, 2, 3)},
    **{f"aten.replication_pad{n}d.default": _padded_by("replicate") for n in (1, 2, 3)},
}
