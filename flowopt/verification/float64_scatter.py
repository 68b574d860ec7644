"""How far float64 itself scatters, where the original's own precision has lost all digits.

The twin's gate takes the own error of the original times the ratio of the two precisions for float64's rounding. That
holds while errors grow in proportion. Where the original's error has reached the size of its values it grows no more,
and says too little of float64: a network without norms, on inputs of 1e4, has scores of 1e16 before a softmax.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from flowopt.ir.float64 import raised_tensor
from flowopt.program.program import Program
from flowopt.verification.decisions.decisions import decisions
from flowopt.verification.ensemble import COPIES, moved_by_one_ulp
from flowopt.verification.evidence import CaseEvidence
from flowopt.verification.output_evidence import OutputEvidence, as_real, distance, saturated_rows
from flowopt.verification.rows import spread
from flowopt.verification.running import run_cases

# Errors of a tenth of the values no longer grow in proportion.
_SATURATED: Final = 0.1


def is_saturated(known: OutputEvidence) -> bool:
    """True where the original's own error in some row is of the size of its values."""
    return known.own_error is not None and bool(saturated_rows(known, _SATURATED).any())


def float64_scatter(program: Program, known: CaseEvidence, seed: int) -> dict[str, Tensor]:
    """The largest distance from the oracle of copies in float64 whose weights moved by one ulp of float64.

    Args:
        program: the original.
        known: of one case.
        seed: of the ensemble.

    Returns:
        For each saturated output, per element; zero in rows that are not saturated, where it is not needed.
    """
    wanted = {name: one for name, one in known.outputs.items() if is_saturated(one)}
    found = {name: torch.zeros_like(as_real(one.oracle)) for name, one in wanted.items()}
    for copy in range(COPIES):
        (outputs,) = run_cases(program, [known.case], raised=True, read=_moved(program, copy, seed))
        if isinstance(outputs, Exception):
            continue
        for name, one in wanted.items():
            if outputs[name].shape == one.oracle.shape:
                found[name] = torch.maximum(found[name], distance(one.oracle, outputs[name], one.oracle))
    return {
        name: torch.where(spread(saturated_rows(wanted[name], _SATURATED), value), value, 0.0)
        for name, value in found.items()
    }


def _moved(program: Program, copy: int, seed: int) -> Callable[[str], Tensor]:
    """Bounds that a decision reads stay, as in the ensemble of the original."""
    kept = {str(n.target) for one in decisions(program) for n in one.deciding if n.op == "get_attr"}

    def read(name: str) -> Tensor:
        raised = raised_tensor(program.tensors[name])
        return raised if name in kept else moved_by_one_ulp(name, raised, copy, seed)

    return read
