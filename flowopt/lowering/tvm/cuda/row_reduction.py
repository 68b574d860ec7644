"""Reductions along rows, with what is computed from them: softmax, log-softmax, norms.

TVM's rule keeps every value that lies between two reductions of a row in shared memory: a softmax its whole row of
exponentials. That fails where the length is free, and where a row is longer than 48 KiB, as over a vocabulary. Here
such values are computed again where they are read, so that a row leaves one number per reduction in shared memory.

Numerical effect: none; the same operations on the same values, some of them twice.
"""

from typing import Any

from tvm import s_tir
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.gpu import GeneralReduction


class RowReduction:
    """TVM's general reduction with nothing but reductions before the last step."""

    def apply(self, func: Any, target: Any, tunable: bool) -> Any:
        """The scheduled function, or None where it is no such reduction."""
        schedule = s_tir.Schedule(func)
        blocks = normalize_prim_func(schedule)
        if blocks is None or len(blocks) < 2:
            return None
        for block in blocks[:-1]:
            if block.is_injective():
                schedule.compute_inline(block.block_rv)
        return GeneralReduction().apply(schedule.mod["main"], target, tunable)
