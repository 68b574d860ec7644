"""A verifier that could not have failed says so."""

import math
from collections.abc import Iterable, Mapping

import torch

from flowopt.report.verdict import STRESSED, Figures, best_figures
from flowopt.verification.limits import weak_power

# Decisions that rounding may turn either way: above this share of an output nothing is decided about it.
_MOST_UNDECIDED = 0.5


def weak_outputs(
    figures: Iterable[Figures], dtypes: Mapping[str, torch.dtype], narrowest: torch.dtype = torch.float64
) -> list[str]:
    """One sentence per output about which the best ordinary case says too little: the verdict is then inconclusive.

    Args:
        figures: of every output and case.
        dtypes: of the outputs, by name.
        narrowest: floating dtype of the model's values: what was rounded to it on the way stays so rounded.
    """
    found = [one for one in figures if not one.regime.startswith(STRESSED)]
    best = best_figures(found)
    decided: dict[str, float] = {}
    for one in found:
        if one.elements:
            share = one.undecided / one.elements
            decided[one.output] = min(decided.get(one.output, 1.0), share)
    return [
        text for name, one in best.items() if (text := _weakness(one, decided.get(name, 0.0), dtypes[name], narrowest))
    ]


def _weakness(best: Figures, undecided: float, dtype: torch.dtype, narrowest: torch.dtype) -> str:
    name = best.output
    if undecided > _MOST_UNDECIDED:
        return (
            f"{name}: in every case, at least {undecided:.0%} of its elements hang on decisions that rounding may turn "
            f"either way"
        )
    narrow = max(dtype, narrowest, key=weak_power)
    limit = weak_power(narrow)
    if not (dtype.is_floating_point or dtype.is_complex) or best.power <= limit:
        return ""
    if math.isinf(best.power):
        return f"{name}: no case has a finite element of it, so nothing was compared"
    return (
        f"{name}: ill-conditioned, weak evidence: even the best case ({best.case}) would not have seen a relative "
        f"change below {best.power:.1e}; {limit:.0e} is the most for {str(narrow).removeprefix('torch.')}"
    )
