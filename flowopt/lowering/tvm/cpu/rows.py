"""Kernels over the rows of a matrix: softmax, layer norm and RMS norm, scheduled as they are made.

A row is reduced in vectors: each lane accumulates every ``lanes``-th element, then the lanes and the elements beyond
the last whole vector are added. No condition stands inside a loop, whatever the length, and the chains of additions
are ``lanes`` times shorter than serial ones. Variances are sums of squared deviations from the mean: the difference of
the mean square and the squared mean cancels.
"""

from collections.abc import Callable
from typing import Any

from tvm import s_tir, te, tirx
from tvm.tirx import ForKind

from flowopt.lowering.tvm.cpu.tile import constant

# FuseOps leaves these kernels alone: they are scheduled.
OPAQUE = 8


def softmax_rows(rows: Any, columns: Any, lanes: int) -> Any:
    """PrimFunc (rows, columns) -> (rows, columns), float32: exp(x - max) / sum, each row."""
    x = te.placeholder((rows, columns), name="X")
    largest = _Reduction(te.max, tirx.max, columns, lanes).of(rows, lambda i, j: x[i, j], "largest")
    shifted = te.compute((rows, columns), lambda i, j: te.exp(x[i, j] - largest[i]), name="shifted")
    total = _Reduction(te.sum, _plus, columns, lanes).of(rows, lambda i, j: shifted[i, j], "total")
    scale = te.compute((rows,), lambda i: tirx.const(1.0, "float32") / total[i], name="scale")
    out = te.compute((rows, columns), lambda i, j: shifted[i, j] * scale[i], name="softmax")
    return _scheduled([x, out], lanes)


def layer_norm_rows(rows: Any, columns: Any, lanes: int, epsilon: float, scaled: bool, centered: bool) -> Any:
    """PrimFunc (x, [weight], [bias]) -> out: x and out (rows, columns), weight and bias (columns,), float32."""
    x = te.placeholder((rows, columns), name="X")
    weight = te.placeholder((columns,), name="weight")
    bias = te.placeholder((columns,), name="bias")
    plus = _Reduction(te.sum, _plus, columns, lanes)
    total = plus.of(rows, lambda i, j: x[i, j], "total")
    mean = te.compute((rows,), lambda i: total[i] / columns.astype("float32"), name="mean")
    squares = plus.of(rows, lambda i, j: (x[i, j] - mean[i]) * (x[i, j] - mean[i]), "squares")
    gain = te.compute((rows,), lambda i: _inverse_root(squares[i], columns, epsilon), name="gain")

    def normalised(i: Any, j: Any) -> Any:
        value = (x[i, j] - mean[i]) * gain[i]
        value = value * weight[j] if scaled else value
        return value + bias[j] if centered else value

    out = te.compute((rows, columns), normalised, name="layer_norm")
    return _scheduled([x, *([weight] if scaled else []), *([bias] if centered else []), out], lanes)


def rms_norm_rows(rows: Any, columns: Any, lanes: int, epsilon: float) -> Any:
    """PrimFunc (x, weight) -> out: x and out (rows, columns), weight (columns,), float32."""
    x = te.placeholder((rows, columns), name="X")
    weight = te.placeholder((columns,), name="weight")
    squares = _Reduction(te.sum, _plus, columns, lanes).of(rows, lambda i, j: x[i, j] * x[i, j], "squares")
    gain = te.compute((rows,), lambda i: _inverse_root(squares[i], columns, epsilon), name="gain")
    out = te.compute((rows, columns), lambda i, j: x[i, j] * gain[i] * weight[j], name="rms_norm")
    return _scheduled([x, weight, out], lanes)


class _Reduction:
    """Reduction of each row by vectors, with the elements beyond the last whole vector apart."""

    def __init__(self, reducer: Callable[..., Any], join: Callable[[Any, Any], Any], columns: Any, lanes: int) -> None:
        self._reducer, self._join, self._columns, self._lanes = reducer, join, columns, lanes

    def of(self, rows: Any, element: Callable[[Any, Any], Any], name: str) -> Any:
        """(rows,): the reduction of ``element(i, j)`` over j."""
        lanes = tirx.IntImm("int64", self._lanes)
        extent = constant(self._columns)
        parts = []
        if extent is None or extent >= self._lanes:
            vector = te.reduce_axis((0, self._columns // lanes), name="vector")
            lane = te.reduce_axis((0, lanes), name="lane")
            by_lane = te.compute(
                (rows, lanes),
                lambda i, at: self._reducer(element(i, vector * lanes + at), axis=vector),
                name=f"{name}_by_lane",
            )
            parts.append(
                te.compute((rows,), lambda i: self._reducer(by_lane[i, lane], axis=lane), name=f"{name}_of_lanes")
            )
        if extent is None or extent % self._lanes:
            whole = self._columns // lanes * lanes
            rest = te.reduce_axis((0, self._columns % lanes), name="rest")
            parts.append(
                te.compute(
                    (rows,), lambda i: self._reducer(element(i, whole + rest), axis=rest), name=f"{name}_of_rest"
                )
            )
        if len(parts) == 1:
            return parts[0]
        return te.compute((rows,), lambda i: self._join(parts[0][i], parts[1][i]), name=name)


def _plus(left: Any, right: Any) -> Any:
    return left + right


def _inverse_root(squares: Any, columns: Any, epsilon: float) -> Any:
    one, small = tirx.const(1.0, "float32"), tirx.const(epsilon, "float32")
    return one / te.sqrt(squares / columns.astype("float32") + small)


def _scheduled(tensors: list[Any], lanes: int) -> Any:
    """Rows in parallel, every stage inside its row, lanes as vectors."""
    sch = s_tir.Schedule(te.create_prim_func(tensors))
    *stages, output = sch.get_child_blocks(sch.get_sblock("root"))
    row, column = sch.get_loops(output)
    sch.parallel(row)
    for stage in reversed(stages):
        sch.compute_at(stage, row, preserve_unit_loops=True)
    for stage in [*stages, output]:
        _vectorise(sch, stage, lanes)
    return sch.mod["main"].with_attr("op_pattern", OPAQUE).with_attr("tirx.is_scheduled", True)


def _vectorise(sch: Any, stage: Any, lanes: int) -> None:
    name = sch.get(stage).name_hint
    loops = sch.get_loops(stage)
    if name.endswith("_by_lane"):
        *_, lane, vector = loops
        sch.reorder(vector, lane)
        sch.vectorize(lane)
        initial = sch.decompose_reduction(stage, vector)
        *_, lane = sch.get_loops(initial)
        if sch.get(lane).kind != ForKind.VECTORIZED:
            sch.vectorize(lane)
        return
    if name.endswith("_of_rest"):
        # There may be no element: the initial value then is the result, and must not wait for the first one.
        sch.decompose_reduction(stage, loops[-1])
        return
    if name.endswith("_of_lanes") or constant(sch.get(loops[-1]).extent) is None:
        # Serial: one vector's lanes, or a free length that the code generator vectorises by itself.
        return
    extent = constant(sch.get(loops[-1]).extent)
    if extent is not None and extent > 1 and extent % lanes == 0:
        _, lane = sch.split(loops[-1], [None, lanes])
        sch.vectorize(lane)
