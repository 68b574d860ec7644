"""Operators without a converter written with others, by torch's own decompositions."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram

from flowopt.ir.quiet import quiet
from flowopt.lowering.tvm.importing.translated import unknown_operators

# A decomposition may give operators that are decomposed in turn.
_MOST_ROUNDS = 4


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """The program with every operator that has no converter decomposed, as far as torch knows how.

    Those that have one stay whole: kernels are written for a layer norm, not for its parts.
    """
    for _ in range(_MOST_ROUNDS):
        unknown = {n.target for n in unknown_operators(exported.graph.nodes)}
        table = {op: _decompositions()[op] for op in unknown if op in _decompositions()}
        if not table:
            break
        # With autograd on, torch traces attention as another kernel than the captured one.
        with quiet(), torch.no_grad():
            exported = exported.run_decompositions(table)
    return exported


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions, decomposition_table

    return {**decomposition_table, **dict(core_aten_decompositions().items())}
