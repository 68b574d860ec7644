"""The schedule of pooling: each channel by itself, its zeros (or lowest values) next to their use, windows unrolled.

With the window unrolled, what is left inside is a loop over the columns of the output without branches, which LLVM
turns into vectors whatever the stride is.
"""

import math
from typing import Any

from tvm import s_tir, tirx

# Windows of more elements than this stay loops.
UNROLLED_WINDOW = 16


def schedule_pooling(schedule: Any, target: Any) -> bool:
    """Schedules maxima and sums over windows, with their padding before and elementwise operators behind.

    Args:
        schedule: of one function, which is left alone where it holds no pooling.
        target: an LLVM target; the schedule is the same for each.

    Returns:
        Whether the function is scheduled now.
    """
    blocks = list(schedule.get_child_blocks(schedule.get_sblock("root")))
    windows = [block for block in blocks if _is_window(schedule.get(block))]
    if len(windows) != 1:
        return False
    place = [schedule.get(block).name_hint for block in blocks].index(schedule.get(windows[0]).name_hint)
    before, after = blocks[:place], blocks[place + 1 :]
    if len(before) > 1 or any(_reduced(schedule.get(block)) for block in before + after):
        return False
    if not _behind_is_inlined(schedule.copy(), after):
        return False
    _behind_is_inlined(schedule, after)

    window = windows[0]
    last = after[-1] if after else window
    channels = schedule.fuse(*schedule.get_loops(last)[:2])
    if last is not window:
        rows = schedule.get_loops(last)[-2]
        schedule.compute_at(window, rows, preserve_unit_loops=True)
    if before:
        schedule.compute_at(before[0], channels, preserve_unit_loops=True)
    schedule.parallel(channels)
    reduction = schedule.get_loops(window)[-len(_reduced(schedule.get(window))) :]
    if math.prod(int(schedule.get(loop).extent) for loop in reduction) <= UNROLLED_WINDOW:
        for loop in reduction:
            schedule.unroll(loop)
    return True


def _behind_is_inlined(schedule: Any, after: list[Any]) -> bool:
    """Computes everything behind the windows in the last block of it, where that is of the windows' own shape."""
    try:
        for block in after[:-1]:
            schedule.compute_inline(block)
    except s_tir.ScheduleError:
        return False
    return True


def _is_window(block: Any) -> bool:
    """Whether a block reduces one image over windows of a size known at build time."""
    reduced = _reduced(block)
    spatial = len(block.iter_vars) - len(reduced)
    if not reduced or spatial < 3 or len(reduced) != spatial - 2 or len(block.reads) != 1:
        return False
    if not all(isinstance(axis.dom.extent, tirx.IntImm) for axis in reduced):
        return False
    value = getattr(block.body, "value", None)
    if not isinstance(value, tirx.Max | tirx.Add) or len(block.reads[0].source.shape) != spatial:
        return False
    # A window moves with the output; what is reduced as a whole is another rule's.
    steps = {axis.var for axis in reduced}
    return all(_moves(dimension.min, steps) for dimension in block.reads[0].region[2:])


def _moves(index: Any, steps: set[Any]) -> bool:
    used = set(tirx.analysis.undefined_vars(index))
    return bool(used & steps) and bool(used - steps)


def _reduced(block: Any) -> list[Any]:
    return [axis for axis in block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
