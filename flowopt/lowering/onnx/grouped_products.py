"""ONNX forms of products whose rows are sorted by the weight that multiplies them.

    y[start_e : end_e] = x[start_e : end_e] @ W_e      for every expert e, the ends known when the program runs

Mixtures of experts in transformers are captured as one such operator, which ONNX lacks. The number of experts is
known when the file is written, so each gets its slice of the rows and its product: no loop, and no product for rows
of another expert. An expert that no row goes to multiplies a slice without rows.
"""

from collections.abc import Callable
from typing import Any

from torch import fx

_GROUPED = "transformers.grouped_mm_fallback.default"


def grouped_translations(graph: fx.Graph) -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter needs beside its own translations for the operators of this graph.

    They are found in the graph by name: the package that defines them need not be installed.
    """
    targets = (n.target for n in graph.nodes if n.op == "call_function")
    return {target: _grouped_product for target in targets if str(target) == _GROUPED and callable(target)}


def _grouped_product(input: Any, weight: Any, offs: Any) -> Any:
    """Rows of the input by groups ([S, I] @ [E, I, O], ends of the groups [E] -> [S, O]).

    Rows behind the last group are zeros, as they are there.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def at(number: int) -> Any:
        return op.Constant(value_ints=[number])

    ends = op.Cast(offs, to=7)  # int64, which Slice takes on every runtime
    start, rows = at(0), []
    for expert in range(weight.shape[0]):
        end = op.Slice(ends, at(expert), at(expert + 1), at(0))
        chosen = op.Gather(weight, op.Constant(value_int=expert), axis=0)
        rows.append(op.MatMul(op.Slice(input, start, end, at(0)), chosen))
        start = end
    behind = op.Sub(op.Shape(input, start=0, end=1), start)
    rest = op.Concat(behind, op.Shape(weight, start=2, end=3), axis=0)
    return op.Concat(*rows, op.Expand(op.CastLike(op.Constant(value_float=0.0), input), rest), axis=0)
