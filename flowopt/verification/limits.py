"""How much more error than the original a candidate may have, and from when on a check says too little."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Limits:
    """How many times the original's own error a candidate may have, per element and in the root mean square.

    Right rewrites needed at most 1.1 and 1.0 on natural inputs, 5.3 and 3.3 on stressed ones, and 9 at sites where
    1,280 products are summed one after another; wrong ones start far above, and the float64 twin sees them first. The
    floor of 4 units of roundoff keeps a lucky original from asking for the impossible.
    """

    largest: float
    rms: float


MODEL_LIMITS = Limits(4.0, 2.5)
SITE_LIMITS = Limits(12.0, 8.0)
_BFLOAT16_SITE_LIMITS = Limits(16.0, 8.0)

# The smallest relative change that a check without a float64 twin must be able to see; above it the verdict is
# inconclusive. A healthy model in 16 bits sees no less than some of its units of roundoff (4.9e-4, 3.9e-3).
_WEAK_POWER = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 3e-1}


def site_limits(dtype: torch.dtype) -> Limits:
    """Limits at a site's boundary and on stressed weights; bfloat16 scatters more."""
    return _BFLOAT16_SITE_LIMITS if dtype is torch.bfloat16 else SITE_LIMITS


def weak_power(dtype: torch.dtype) -> float:
    """The power above which a check of this dtype is too weak to decide."""
    return _WEAK_POWER.get(dtype, 1e-3)
