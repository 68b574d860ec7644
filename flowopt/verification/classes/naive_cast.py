"""The naive cast of a whole model: what a careful cast is compared with."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flowopt.ir.copy_graph import copy_graph
from flowopt.ir.evaluate import evaluate
from flowopt.program.program import Program
from flowopt.verification.inputs.cases import Case
from flowopt.verification.running import Outputs

_FLOATS = (torch.float32, torch.float64)


def run_naive_cast(program: Program, case: Case, dtype: torch.dtype) -> Outputs:
    """Outputs of the same graph with every stored tensor, input and dtype argument cast to ``dtype``.

    This is what ``model.half()`` or ``model.bfloat16()`` computes; outputs come back in the dtype of the cast.

    Raises:
        Exception: what an operator raised, one of ``flowopt.ir.evaluate.RUN_ERRORS``: not all take 16 bits.
    """
    graph = copy_graph(program.graph)
    for node in graph.nodes:
        node.args = tuple(_cast(argument, dtype) for argument in node.args)
        node.kwargs = {name: _cast(argument, dtype) for name, argument in node.kwargs.items()}
    inputs, overrides = (
        {name: _cast(tensor, dtype) for name, tensor in given.items()} for given in (case.inputs, case.overrides)
    )
    with _by_default(dtype):
        values = evaluate(graph, lambda name: _cast(program.tensors[name], dtype), inputs, override=overrides)
    return {o.name: v for o, v in zip(program.outputs, values, strict=True)}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors and dtypes cast; what is neither, or no wide float, as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dtype in _FLOATS else value
    return dtype if isinstance(value, torch.dtype) and value in _FLOATS else value


@contextlib.contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    """Within it, factories without a dtype give ``dtype``."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
