"""Attention without the matrix of all scores: modules that take the place of softmax attention."""

from flowopt.ops.attention.chunk_hybrid_attention import ChunkHybridAttention
from flowopt.ops.attention.combiner_attention import CombinerAttention
from flowopt.ops.attention.feature_map import FeatureMap
from flowopt.ops.attention.flow_attention import FlowAttention
from flowopt.ops.attention.hybrid_window_attention import HybridWindowAttention
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.ops.attention.linear_attention import LinearAttention
from flowopt.ops.attention.linear_form import AttentionShape, LinearForm
from flowopt.ops.attention.linearizations import LINEARIZATIONS, linearization
from flowopt.ops.attention.mean_attention import MeanAttention

__all__ = [
    "LINEARIZATIONS",
    "AttentionShape",
    "ChunkHybridAttention",
    "CombinerAttention",
    "FeatureMap",
    "FlowAttention",
    "HybridWindowAttention",
    "InPlaceOfSoftmax",
    "LinearAttention",
    "LinearForm",
    "MeanAttention",
    "linearization",
]
