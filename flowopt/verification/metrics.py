"""How far a value is from the float64 oracle, in the figures that people know."""

import math

import torch
from torch import Tensor

from flowopt.report.verdict import Metrics

# A percentile of more elements than this is taken from so many of them, drawn at random.
_MOST_SORTED = 1 << 20


def measured(value: Tensor, oracle: Tensor, scope: Tensor) -> Metrics | None:
    """Figures of ``value`` against the oracle, over the elements in scope; None where there are none.

    Args:
        value: in its own dtype, which sets the size of an ulp.
        oracle: in float64, same shape.
        scope: where both are finite, bool, same shape.
    """
    if not bool(scope.any()):
        return None
    whole = bool(scope.all())
    wanted = oracle.reshape(-1) if whole else oracle[scope]
    found = (value.reshape(-1) if whole else value[scope]).to(torch.float64)
    error = (found - wanted).abs()
    noise, signal = _norm(error), _norm(wanted)
    return Metrics(
        max_error=float(error.max()),
        p99_error=_percentile(error, 0.99),
        rms_error=noise / math.sqrt(error.numel()),
        max_ulp=float((error / _ulp(wanted, value.dtype)).max()),
        snr_db=_decibel(signal, noise),
        cosine=_cosine(found, wanted, signal),
    )


def _norm(value: Tensor) -> float:
    """Euclidean norm; the squares of float64's largest and smallest numbers are none."""
    largest = float(value.abs().max())
    return largest * math.sqrt(float((value / largest).square().sum())) if largest > 0 else 0.0


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 20 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf


def _percentile(error: Tensor, share: float) -> float:
    if error.numel() > _MOST_SORTED:
        # Every n-th element would be of few channels only.
        drawn = torch.randint(error.numel(), (_MOST_SORTED,), generator=torch.Generator().manual_seed(0))
        error = error[drawn]
    return float(error.kthvalue(max(1, math.ceil(share * error.numel()))).values)


def _ulp(oracle: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of ``dtype`` at the oracle's magnitude."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(oracle.abs().clamp(min=info.smallest_normal, max=info.max))
    return torch.ldexp(torch.full_like(oracle, info.eps), exponent - 1)


def _cosine(found: Tensor, wanted: Tensor, signal: float) -> float:
    """Two vectors of zeros point the same way; zeros and anything else do not."""
    size = _norm(found)
    if size == 0 or signal == 0:
        return 1.0 if size == signal else 0.0
    return float((found / size * (wanted / signal)).sum())
