"""Products over a packed right operand, one tile of the result held in registers.

    C[.., i, j] = sum_k A[.., i, k] B[.., k, j]          B stored as P[.., j // w, k, j % w], w columns to a panel

A tile is a few rows by a few vectors of columns; its accumulators stay in registers while k runs whole and serial, so
that each element of C is one chain of float32 additions in the order of k. Rows beyond the last read the last row again
and are not written: no condition stands inside the loop over k, and the row addresses leave it.

Source of the scheme: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.tirx import ForKind

from flowopt.lowering.tvm.cpu.registers import Registers

TILE = "flowopt.tile"


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and vectors of one tile of accumulators."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def tile_of(rows: int | None, columns: int | None, registers: Registers) -> Tile:
    """The tile of a product with this many rows and columns; None for a free size.

    The accumulators, one vector of B for each column vector, and one broadcast element of A share the registers. Wide
    tiles read A less often than tall ones, and few rows need few streams through A, whose rows often lie a multiple of
    the cache's stride apart.
    """
    widest = 4 if registers.count >= 32 else 2
    vectors = widest if columns is None else min(widest, -(-columns // registers.lanes))
    most = min((registers.count - 2 - vectors) // vectors, 12)
    if rows is None:
        return Tile(most, vectors, registers.lanes)
    tiles = -(-rows // most)
    return Tile(-(-rows // tiles), vectors, registers.lanes)


def constant(extent: Any) -> int | None:
    """The value of an extent, None when it is free."""
    if isinstance(extent, int):
        return extent
    return int(extent.value) if isinstance(extent, tirx.IntImm) else None


def panels(columns: Any, width: int) -> Any:
    """How many panels hold these columns. Written so that the analyser can prove that the panels cover them."""
    return (columns - 1) // width + 1


def packed(b: Any, width: int) -> Any:
    """B of shape (.., k, n) as panels (.., ceil(n / width), k, width); columns beyond the last repeat it."""
    *batch, depth, columns = b.shape

    def element(*index: Any) -> Any:
        *outer, panel, k, lane = index
        column = panel * width + lane
        extent = constant(columns)
        if extent is None or extent % width:
            column = tirx.min(column, columns - 1)
        return b(*outer, k, column)

    width_ = tirx.IntImm("int64", width)
    return te.compute((*batch, panels(columns, width), depth, width_), element, name="panels")


def product(a: Any, p: Any, batch: Sequence[Any], rows: Any, columns: Any, tile: Tile) -> Any:
    """A of shape (.., m, k) times the panels P (.., n / w, k, w): (batch.., m, n).

    A leading extent of 1 in either operand is broadcast; missing leading extents too.
    """
    depth = a.shape[-1]
    k = te.reduce_axis((0, depth), name="k")
    leading = len(batch)
    width = tirx.IntImm("int64", tile.columns)
    height = tirx.IntImm("int64", tile.rows)

    def within(tensor: Any, own: int, index: Sequence[Any]) -> list[Any]:
        extents = tensor.shape[:own]
        kept = index[leading - own :]
        return [tirx.IntImm("int64", 0) if constant(e) == 1 else i for e, i in zip(extents, kept, strict=True)]

    def element(*index: Any) -> Any:
        outer, (row_tile, panel, row, lane) = index[:leading], index[leading:]
        i = row_tile * height + row
        extent = constant(rows)
        if extent is None or extent % tile.rows:
            i = tirx.min(i, rows - 1)
        left = a(*within(a, len(a.shape) - 2, outer), i, k)
        right = p(*within(p, len(p.shape) - 3, outer), panel, k, lane)
        return te.sum(left * right, axis=k)

    accumulators = te.compute(
        (*batch, panels(rows, tile.rows), panels(columns, tile.columns), height, width),
        element,
        name="accumulators",
        attrs={TILE: [tile.rows, tile.vectors, tile.lanes], "flowopt.shared_panels": len(p.shape) == 3},
    )

    def written(*index: Any) -> Any:
        outer, (i, j) = index[:leading], index[leading:]
        return accumulators(*outer, i // height, j // width, i % height, j % width)

    return te.compute((*batch, rows, columns), written, name="product")


def schedule_tile(sch: Any, accumulators: Any, output: Any) -> None:
    """Computes tiles of ``accumulators`` inside ``output``, which reads them and ends in the axes (i, j).

    Tiles run in parallel. Panels shared by the whole batch are the outermost loop: one panel stays in the cache while
    all rows pass.
    """
    annotations = sch.get(accumulators).annotations
    rows, vectors, lanes = (int(value) for value in annotations[TILE])
    *batch, i, j = sch.get_loops(output)
    row_tile, row = sch.split(i, [None, rows])
    panel, vector, lane = sch.split(j, [None, vectors, lanes])
    outer = [panel, *batch, row_tile] if annotations["flowopt.shared_panels"] else [*batch, panel, row_tile]
    sch.reorder(*outer, row, vector, lane)
    sch.compute_at(accumulators, row_tile, preserve_unit_loops=True)
    sch.set_scope(accumulators, 0, "local")
    sch.parallel(sch.fuse(*outer))
    sch.vectorize(lane)
    sch.unroll(vector)
    sch.unroll(row)
    *_, row, column, k = sch.get_loops(accumulators)
    vector, lane = sch.split(column, [vectors, lanes])
    sch.reorder(k, row, vector, lane)
    sch.vectorize(lane)
    sch.unroll(vector)
    sch.unroll(row)
    initial = sch.decompose_reduction(accumulators, k)
    *_, row, vector, lane = sch.get_loops(initial)
    if sch.get(lane).kind != ForKind.VECTORIZED:
        sch.vectorize(lane)
        sch.unroll(vector)
        sch.unroll(row)
