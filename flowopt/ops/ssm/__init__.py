"""Diagonal state space layers (S4D): one function as a transform, a convolution, chunks with a state, or steps."""

from flowopt.ops.ssm.chunk_tables import ChunkTables, chunk_tables
from flowopt.ops.ssm.diagonal_system import DiagonalSystem, Discretization, kernel_of
from flowopt.ops.ssm.real_recurrence import RealRecurrence, real_recurrence
from flowopt.ops.ssm.s4d import S4D, SsmForm

__all__ = [
    "S4D",
    "ChunkTables",
    "DiagonalSystem",
    "Discretization",
    "RealRecurrence",
    "SsmForm",
    "chunk_tables",
    "kernel_of",
    "real_recurrence",
]
