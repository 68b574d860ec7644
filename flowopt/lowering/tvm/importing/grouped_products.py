"""Products whose rows are sorted by the weight that multiplies them: mixtures of experts.

    y[r] = x[r] @ W[e(r)]      where e(r) counts the groups that end at or before row r

One loop nest reads for each row the weight of its expert: no product for rows of another expert, and no size that
depends on the data. Rows behind the last group are zeros.
"""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, dtype_of, rank_of, shape_of, wide

Converter = Callable[..., Any]


def _grouped_product(make: Maker, rows: Any, weight: Any, ends: Any) -> Any:
    """[S, I] by [E, I, O] with the ends of the groups [E] -> [S, O]."""
    from tvm import te, tirx

    dtype = wide(dtype_of(rows))
    count, inner = shape_of(rows)
    experts = shape_of(weight)[0]

    def expert(index: Any, own: Any, end: Any) -> Any:
        group = te.reduce_axis((0, own[0]), name="group")
        past = tirx.Cast("int64", end(group)) <= index[0]
        return te.sum(tirx.Select(past, tirx.IntImm("int64", 1), tirx.IntImm("int64", 0)), axis=group)

    owners = make.compute([count], expert, ends, sizes=[experts], name="expert_of_row")
    # Read only behind a test of the row; the index itself has to be one of the weight's all the same.
    chosen = make.compute([count], lambda i, s, e: tirx.min(e(*i), s[0] - 1), owners, sizes=[experts], name="expert")

    def element(index: Any, own: Any, x: Any, w: Any, e: Any) -> Any:
        k = te.reduce_axis((0, own[0]), name="k")
        return te.sum(tirx.Cast(dtype, x(index[0], k)) * tirx.Cast(dtype, w(e(index[0]), k, index[1])), axis=k)

    made = make.compute(make.out_shape, element, rows, weight, chosen, sizes=[inner], name="grouped_product")

    def shown(index: Any, own: Any, y: Any, e: Any) -> Any:
        return tirx.Select(e(index[0]) < own[0], y(*index), tirx.const(0, dtype))

    return make.result(make.compute(make.out_shape, shown, made, owners, sizes=[experts], name="grouped_rows"))


def _grouped_mm(make: Maker, rows: Any, weight: Any, ends: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """torch's own operator, of which this is one of four layouts."""
    if ends is None or bias is not None or rank_of(rows) != 2 or rank_of(weight) != 3:
        raise Unsupported("grouped products other than rows by stacked weights")
    return _grouped_product(make, rows, weight, ends)


GROUPED_PRODUCTS: dict[str, Converter] = {
    "transformers.grouped_mm_fallback.default": _grouped_product,
    "aten._grouped_mm.default": _grouped_mm,
}
