"""Scaled dot-product attention as products, a mask and a softmax.

    softmax(scale q k^T + mask) v

``relax.nn.attention`` aligns causal masks otherwise, takes no boolean mask and has other axes. A row that the mask
hides entirely gives zeros, as in torch: such rows are attended to without mask, and zeroed at the end.
"""

import math
from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, dtype_of, fixed, shape_of, wide
from flowopt.lowering.tvm.importing.products import product

Converter = Callable[..., Any]


def _attention(
    make: Maker,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    from tvm import relax

    if dropout_p:
        raise Unsupported(f"dropout_p={dropout_p}")
    if enable_gqa:
        key, value = (_repeated_heads(make, x, shape_of(query)[-3]) for x in (key, value))
    axes = list(range(len(shape_of(key))))
    axes[-2:] = axes[:-3:-1]
    scores = product(make, query, make.permute(key, axes))
    dtype = dtype_of(scores)
    if scale is None:
        width = fixed(shape_of(query)[-1])
        if width is None:
            raise Unsupported("heads of a free width without a scale")
        scale = 1 / math.sqrt(width)
    if scale != 1:
        scores = make.emit(relax.op.multiply(scores, make.as_tensor(scale, dtype)))
    dead = None
    if is_causal:
        scores = _causal(make, scores)
    elif attn_mask is not None:
        scores, dead = _masked(make, scores, attn_mask)
    weights = make.emit(relax.op.nn.softmax(scores, axis=-1))
    mixed = product(make, make.cast(weights, dtype_of(value)), value)
    if dead is not None:
        mixed = make.emit(relax.op.where(dead, make.constant(0, wide(dtype_of(mixed))), mixed))
    return make.result(mixed)


def _repeated_heads(make: Maker, x: Any, heads: Any) -> Any:
    """Every head of keys or values for the group of queries that shares it."""
    from tvm import relax

    *lead, own, length, width = shape_of(x)
    one, groups = fixed(own), fixed(heads)
    if one is None or groups is None:
        raise Unsupported("a free number of heads")
    if one == groups:
        return x
    grouped = make.emit(relax.op.expand_dims(x, len(lead) + 1))
    spread = make.broadcast(grouped, [*lead, one, groups // one, length, width])
    return make.reshape(spread, [*lead, groups, length, width])


def _causal(make: Maker, scores: Any) -> Any:
    """Query i sees keys 0 .. i, also where there are more keys than queries (torch aligns the upper left)."""
    from tvm import tirx

    def element(index: Any, _: Any, s: Any) -> Any:
        return tirx.Select(index[-1] <= index[-2], s(*index), -tirx.infinity(s.dtype))

    return make.compute(shape_of(scores), element, scores, name="causal")


def _masked(make: Maker, scores: Any, mask: Any) -> tuple[Any, Any]:
    """The scores under a mask, and which rows it hides entirely."""
    from tvm import relax

    dtype = dtype_of(scores)
    lowest = make.constant(float("-inf"), dtype)
    added = None if dtype_of(mask) == "bool" else make.cast(mask, dtype)
    seen = mask if added is None else make.emit(relax.op.greater(added, lowest))
    # The largest truth value, not the largest number: TVM's maximum over -inf alone is the lowest finite number.
    any_seen = make.emit(relax.op.max(make.cast(seen, "int8"), axis=[-1], keepdims=True))
    dead = make.emit(relax.op.equal(any_seen, make.constant(0, "int8")))
    if added is None:
        shown = make.emit(relax.op.logical_or(mask, dead))
        return make.emit(relax.op.where(shown, scores, lowest)), dead
    alive = make.emit(relax.op.where(dead, make.constant(0, dtype), added))
    return make.emit(relax.op.add(scores, alive)), dead


ATTENTION: dict[str, Converter] = {"aten.scaled_dot_product_attention.default": _attention}
