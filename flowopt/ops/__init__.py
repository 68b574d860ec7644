"""Normalizations beyond torch's own: training forward, published backward, and what of them stays at inference."""

from flowopt.ops.alpha_batch_norm import AlphaBatchNorm
from flowopt.ops.frozen_norm import FrozenNorm
from flowopt.ops.power_norm import PowerNorm
from flowopt.ops.region_norm import LearnedRegionNorm, RegionNorm
from flowopt.ops.time_dependent_layer_norm import TimeDependentLayerNorm, TimeTableLayerNorm
from flowopt.ops.unified_norm import UnifiedNorm
from flowopt.ops.unmix_tns import UnMixTNS

__all__ = [
    "AlphaBatchNorm",
    "FrozenNorm",
    "LearnedRegionNorm",
    "PowerNorm",
    "RegionNorm",
    "TimeDependentLayerNorm",
    "TimeTableLayerNorm",
    "UnMixTNS",
    "UnifiedNorm",
]
