"""Stressed weights: a rewrite must be right for any weights, not for those that training happened to find.

Matrices thirty times larger and biases moved by fifty make softmax, softplus and variances meet numbers that the
model itself never gives them: a softmax without its shift, a variance in one pass, an overflow show there alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from flowopt.program.program import Program
from flowopt.verification.grouping import grouped
from flowopt.verification.inputs.cases import Case
from flowopt.verification.running import run_cases

# Deep networks without norms overflow under the full factor, and then nothing is left to compare.
_FACTORS: Final = (30.0, 10.0, 3.0, 1.5)
_SHIFT = 50.0
# Stress overflows what is large already: these cases have small sizes and ordinary numbers.
STRESSED_CASES: Final = ("traced", "smallest", "prime")
# Masks and tables of constants hold larger numbers on purpose.
_LARGEST_WEIGHT = 1e4
_ENOUGH = 0.5


def stressed(program: Program, cases: Sequence[Case]) -> tuple[Program, float] | None:
    """A copy with stressed weights, and the factor: the largest under which most outputs of ``cases`` stay finite.

    None where no factor leaves most of them finite.
    """
    for factor in _FACTORS:
        found = replace(program.copy(), tensors=stressed_tensors(program, factor))
        groups = (run_cases(found, group) for group in grouped(found, cases))
        outputs = [o for group in groups for o in group if not isinstance(o, Exception)]
        shares = [_finite_share(v) for o in outputs for v in o.values() if v.is_floating_point() or v.is_complex()]
        if outputs and sum(shares) >= _ENOUGH * len(shares):
            return found, factor
    return None


def stressed_tensors(program: Program, factor: float) -> dict[str, Tensor]:
    """Floating tensors of two axes and more times ``factor``, those of one axis plus 50 x factor / 30."""
    state = {i.state for i in program.inputs if i.state is not None}
    return {n: t if n in state else _stressed(t, factor) for n, t in program.tensors.items()}


def _stressed(tensor: Tensor, factor: float) -> Tensor:
    if not tensor.is_floating_point() or tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    if not float(tensor.detach().abs().max()) < _LARGEST_WEIGHT:
        return tensor
    if tensor.dim() > 1:
        return tensor.detach() * factor
    return tensor.detach() + _SHIFT * factor / _FACTORS[0]


def _finite_share(value: Tensor) -> float:
    return float(torch.isfinite(value).double().mean()) if value.numel() else 1.0
