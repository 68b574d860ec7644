"""Normalizations beyond torch's own: training forward, published backward, and what of them stays at inference."""

from flowopt.ops.power_norm import PowerNorm
from flowopt.ops.unified_norm import UnifiedNorm

__all__ = ["PowerNorm", "UnifiedNorm"]
