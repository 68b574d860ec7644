"""Operators without a converter written with others, by torch's own decompositions."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram

from flowopt.ir.quiet import quiet
from flowopt.lowering.tvm.importing.converters import CONVERTERS
from flowopt.lowering.tvm.importing.translated import unknown_operators


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """The program with every operator that has no converter decomposed, as far as torch knows how.

    Those that have one stay whole: kernels are written for a layer norm, not for its parts.
    """
    if not unknown_operators(exported.graph.nodes):
        return exported
    # With autograd on, torch traces attention as another kernel than the captured one.
    with quiet(), torch.no_grad():
        whole: ExportedProgram = exported.run_decompositions(dict(_decompositions()))
        return whole


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Of everything without a converter: what a decomposition gives is decomposed in turn."""
    from torch._decomp import core_aten_decompositions, decomposition_table

    known = {**decomposition_table, **dict(core_aten_decompositions().items())}
    return {operator: function for operator, function in known.items() if str(operator) not in CONVERTERS}
