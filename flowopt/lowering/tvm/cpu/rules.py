"""The schedule rules, tried in this order; the first that applies decides.

A rule takes a schedule of one function and returns whether it applied. Primitives that do not fit the function raise
ScheduleError, and checks inside TVM other RuntimeErrors: both count as no.
"""

from collections.abc import Callable
from typing import Any

from tvm import s_tir, tirx

from flowopt.lowering.tvm.cpu.convolution_rule import schedule_convolution
from flowopt.lowering.tvm.cpu.elementwise import schedule_elementwise
from flowopt.lowering.tvm.cpu.fallback import schedule_fallback
from flowopt.lowering.tvm.cpu.pooling_rule import schedule_pooling
from flowopt.lowering.tvm.cpu.tiled import schedule_tiled

RULES: tuple[Callable[[Any, Any], bool], ...] = (
    schedule_tiled,
    schedule_convolution,
    schedule_pooling,
    schedule_elementwise,
    schedule_fallback,
)


def scheduled(function: Any, target: Any) -> Any:
    """The function under the first rule that applies; unchanged when none does."""
    for rule in RULES:
        schedule = s_tir.Schedule(function)
        try:
            if rule(schedule, target):
                return schedule.mod["main"].with_attr("tirx.is_scheduled", True)
        except RuntimeError:
            continue
    return function


def with_schedules(module: Any, target: Any) -> Any:
    """The module with every kernel scheduled that is not yet."""
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and not (function.attrs or {}).get("tirx.is_scheduled"):
            module[variable] = scheduled(function, target)
    return module
