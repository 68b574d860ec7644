"""The rule that is always right: every block's leading spatial loops in parallel, the rest as written."""

from typing import Any

from tvm.s_tir import ScheduleError
from tvm.tirx import IterVar


def schedule_fallback(sch: Any, target: Any) -> bool:
    """Applies to every function. A block whose loops cannot be parallel stays serial."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        loops = sch.get_loops(block)
        axes = sch.get(block).iter_vars
        if len(loops) != len(axes):
            continue
        leading = []
        for loop, axis in zip(loops, axes, strict=True):
            if axis.iter_type != IterVar.DataPar:
                break
            leading.append(loop)
        if not leading:
            continue
        try:
            sch.parallel(sch.fuse(*leading))
        except ScheduleError:
            continue
    return True
