"""The row of PowerNorm and Unified Normalization: known sequences, published backward, folding, dead channels."""

from itertools import product

from flowopt.ops import PowerNorm, UnifiedNorm
from tests.goals.row import Measured, Row
from tests.ops import test_power_norm, test_unified_norm
from tests.ops.agreement import dead_channel_problems

_LARGEST = 1e-12  # sums of at most 5 products and a fourth root, in float64


def backward_difference() -> float:
    """Largest difference from the published iterations by hand, with and without padding, outliers and warm-up."""
    power = [test_power_norm.backward_difference(padding) for padding in (False, True)]
    unified = [
        test_unified_norm.backward_difference(padding=padding, filters=filters, late=late)
        for padding, filters, late in product((False, True), repeat=3)
    ]
    return max(power + unified)


def fold_difference() -> float:
    """Largest difference of a linear layer after a norm and the one with the norm in it."""
    return max(
        test_power_norm.fold_difference(norm, norm.channels, has_bias=has_bias)
        for norm in (test_power_norm.random_norm(2), test_unified_norm.random_norm(2))
        for has_bias in (False, True)
    )


def _vectors() -> Measured:
    wrong = [f"PN: {problem}" for problem in test_power_norm.vector_problems()]
    wrong += [f"UN: {problem}" for problem in test_unified_norm.vector_problems()]
    backward, folded = backward_difference(), fold_difference()
    dead = dead_channel_problems(PowerNorm(3, groups=None, warmup_iters=2))
    dead += dead_channel_problems(UnifiedNorm(3, warmup_iters=2, outlier_filtration=True))
    digits = "every digit" if not wrong else f"{len(wrong)} digits off"
    finite = "finite" if not dead else "not finite"
    value = f"{digits}; backward {backward:.0e}; folded {folded:.0e}; {finite}"
    is_met = not wrong and not dead and max(backward, folded) < _LARGEST
    return Measured(value, is_met, (*wrong, *dead))


ROWS = (
    Row(
        "ops.vectors",
        "PN and UN vectors in float64 to every printed digit; backward against the published formula at 1e-12; "
        "folded = unfolded at 1e-12; zero channels finite",
        _vectors,
    ),
)
