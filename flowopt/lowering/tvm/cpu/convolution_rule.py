"""The schedule of convolutions: sums in registers, tile by tile, and everything that follows within the tile.

For each tile, in parallel over all of them: the sums start at zero, run over input channels and taps with the tile
unrolled, and are then taken through the elementwise operators fused behind the convolution and written.
"""

import math
from typing import Any

from tvm import s_tir, tirx

from flowopt.lowering.tvm.cpu.convolution_stages import ANNOTATION, CHANNELS_FIRST, PADDED, PIXELS_FIRST, ROWS
from flowopt.lowering.tvm.cpu.vector_registers import VectorRegisters, vector_registers

# Taps along the last dimension are unrolled up to this many, so that pixels they share are loaded once.
UNROLLED_TAPS = 3
UNROLLED_ROW_TAPS = 7
# Phases of a transposed convolution that are unrolled; sums of a phase that is not have no registers of their own.
UNROLLED_PHASES = 16


def schedule_convolution(schedule: Any, target: Any) -> bool:
    """Schedules what the legalisation of convolutions makes, with any elementwise operators fused behind it.

    Args:
        schedule: of one function, which is left alone where it holds no convolution.
        target: an LLVM target.

    Returns:
        Whether the function is scheduled now.
    """
    if _annotated(schedule, ANNOTATION) is None:
        return False
    last = _inlined(schedule)
    _schedule_elementwise(schedule, after=last)
    _schedule_tiles(schedule, _annotated(schedule, ANNOTATION), last, vector_registers(target))
    return True


def _inlined(schedule: Any) -> Any:
    """The block in which as much as possible of what follows the sums has been computed: the one that reads them."""
    names = [schedule.get(block).name_hint for block in _others(schedule)]
    shape = _extents(schedule, schedule.get_sblock("result"))
    for end in range(len(names) - 1, names.index("result"), -1):
        # A broadcast to a larger shape reads one sum for many results, which no tile of sums would cover.
        if _same_shape(_extents(schedule, schedule.get_sblock(names[end])), shape):
            attempt = schedule.copy()
            if _inline(attempt, names[:end], names[end]):
                _inline(schedule, names[:end], names[end])
                return schedule.get_sblock(names[end])
    return schedule.get_sblock("result")


def _inline(schedule: Any, names: list[str], last: str) -> bool:
    """Whether the named blocks could be computed in their readers, and the sums are left with one reader, ``last``."""
    try:
        for name in names:
            schedule.compute_inline(schedule.get_sblock(name))
    except s_tir.ScheduleError:
        return False
    readers = schedule.get_consumers(_annotated(schedule, ANNOTATION))
    return [schedule.get(reader).name_hint for reader in readers] == [last]


def _schedule_tiles(schedule: Any, sums: Any, last: Any, registers: VectorRegisters) -> None:
    order = str(schedule.get(sums).annotations[ANNOTATION])
    shape = [axis.dom.extent for axis in schedule.get(sums).iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    rank = len(_extents(schedule, last)) - 2
    by_rows = order == ROWS
    if by_rows:
        groups, channels, tile, phases = shape[1], shape[2 + rank], shape[3 + rank :], [1] * rank
    else:
        groups, channels, tile, phases = shape[1], shape[-1], shape[-1 - rank : -1], shape[2 : 2 + rank]

    loops = schedule.get_loops(last)
    batch, channel, places = loops[0], loops[1], loops[2:]
    groups = int(groups)
    group, channel = schedule.split(channel, [groups, None]) if groups > 1 else (None, channel)
    block, member = schedule.split(channel, [None, int(channels)])
    # The phases of a tile are computed together: a tile of one phase would be every second pixel, and not be inferred.
    split = [
        schedule.split(loop, [None, int(extent) * int(count)])
        for loop, extent, count in zip(places, tile, phases, strict=True)
    ]
    outer, inner = [first for first, _ in split], [second for _, second in split]
    group_loops = [] if group is None else [group]
    if order == PIXELS_FIRST:
        tiles = [batch, *group_loops, *outer, block]
    elif order == CHANNELS_FIRST:
        tiles = [*group_loops, block, batch, *outer]
    else:
        tiles = [batch, *group_loops, block, *outer]
    schedule.reorder(*tiles, member, *inner)
    # Before the loops are fused: which sums a tile needs is hard to read out of quotients of a fused loop.
    schedule.compute_at(sums, tiles[-1], preserve_unit_loops=True)
    schedule.parallel(schedule.fuse(*tiles))
    _schedule_sums(schedule, sums, rank, by_rows, registers)

    copies = [block for block in _blocks(schedule) if PADDED in schedule.get(block).annotations]
    if copies:
        image = schedule.fuse(*schedule.get_loops(copies[-1])[:2])
        for block in copies[:-1]:
            schedule.compute_at(block, image, preserve_unit_loops=True)
        schedule.parallel(image)


def _schedule_sums(schedule: Any, sums: Any, rank: int, by_rows: bool, registers: VectorRegisters) -> None:
    loops = schedule.get_loops(sums)
    reduction = loops[-1 - rank :]
    values = loops[-2 - 2 * rank : -1 - rank]
    # What is left are the loops over tiles, of extent 1 each, and those over phases.
    phases = loops[1 : -2 - 2 * rank]
    dtype = str(schedule.get(sums).writes[0].source.dtype)
    lanes = min(int(schedule.get(values[-1]).extent), registers.lanes(dtype))
    vectors, lane = schedule.split(values[-1], [None, lanes])
    unrolled = [*values[:-1], vectors]
    limit = UNROLLED_ROW_TAPS if by_rows else UNROLLED_TAPS
    schedule.reorder(*reduction, *unrolled, lane)
    schedule.vectorize(lane)
    for loop in unrolled:
        schedule.unroll(loop)
    if int(schedule.get(reduction[-1]).extent) <= limit:
        schedule.unroll(reduction[-1])
        if by_rows and rank > 1 and int(schedule.get(reduction[-2]).extent) <= UNROLLED_TAPS:
            schedule.unroll(reduction[-2])
    if not by_rows and math.prod(int(schedule.get(loop).extent) for loop in phases) <= UNROLLED_PHASES:
        for loop in phases:
            schedule.unroll(loop)
    schedule.decompose_reduction(sums, reduction[0])
    schedule.set_scope(sums, 0, "local")


def _schedule_elementwise(schedule: Any, after: Any) -> None:
    """Schedules what could not be computed within the tiles, each block by itself."""
    names = [schedule.get(block).name_hint for block in _others(schedule)]
    last = schedule.get(after).name_hint
    for name in names:
        loops = schedule.get_loops(schedule.get_sblock(name))
        if name != last and len(loops) > 1:
            schedule.parallel(schedule.fuse(*loops[:-1]))


def _others(schedule: Any) -> list[Any]:
    """The blocks that are neither the sums nor their padded input."""
    marks = (ANNOTATION, PADDED)
    return [block for block in _blocks(schedule) if not any(m in schedule.get(block).annotations for m in marks)]


def _blocks(schedule: Any) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _annotated(schedule: Any, mark: str) -> Any:
    for block in _blocks(schedule):
        if mark in schedule.get(block).annotations:
            return block
    return None


def _extents(schedule: Any, block: Any) -> list[Any]:
    return [axis.dom.extent for axis in schedule.get(block).iter_vars]


def _same_shape(one: list[Any], other: list[Any]) -> bool:
    from tvm import sym

    analyzer = sym.Analyzer()
    return len(one) == len(other) and all(analyzer.can_prove_equal(a, b) for a, b in zip(one, other, strict=True))
