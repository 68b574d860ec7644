"""The rule of blocks without a reduction: one pass over the output, vectors inside, in parallel outside."""

from math import prod
from typing import Any

from tvm.tirx import IterVar

from flowopt.lowering.tvm.cpu.registers import registers_of
from flowopt.lowering.tvm.cpu.tile import constant

# Waking the threads costs as much as computing about this many elements.
PARALLEL_FROM = 8192


def schedule_elementwise(sch: Any, target: Any) -> bool:
    """Applies when every axis of every block is spatial. Producers are inlined where each has one output."""
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    if not blocks or any(axis.iter_type != IterVar.DataPar for b in blocks for axis in sch.get(b).iter_vars):
        return False
    *between, output = blocks
    for block in between:
        sch.compute_inline(block)
    schedule_pass(sch, output, registers_of(target).lanes)
    return True


def schedule_pass(sch: Any, block: Any, lanes: int) -> None:
    """One spatial block over its output: the last axis in vectors, the others in parallel."""
    loops = sch.get_loops(block)
    if not loops:
        return
    extents = [constant(sch.get(loop).extent) for loop in loops]
    size = None if None in extents else prod(extent for extent in extents if extent is not None)
    if extents[-1] is not None and extents[-1] % lanes and size is not None and size % lanes == 0:
        loops = [sch.fuse(*loops)]
        extents = [size]
    *outer, last = loops
    if extents[-1] is not None and extents[-1] % lanes == 0:
        vectors, lane = sch.split(last, [None, lanes])
        sch.vectorize(lane)
        outer = [*outer, vectors]
    elif not outer:
        outer = [last]
    if size is None or size >= PARALLEL_FROM:
        sch.parallel(sch.fuse(*outer))
