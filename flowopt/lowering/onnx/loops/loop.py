"""The loop as ONNX Loop: a constant count, a condition that is passed through, rows by their number.

Some runtimes take no other count and condition than these.

Source: ONNX operators: Loop.
"""

from typing import Any

import torch

from flowopt.lowering.onnx.loops.body import Body, all_rows, described, name_last, row_at
from flowopt.lowering.onnx.loops.outer import Outer


def write_loop(outer: Outer, body: Body) -> list[Any]:
    """Add the loop behind what is there; weights, tables and invariants are read from around it.

    Returns:
        The last state.
    """
    import onnx_ir

    outer.take_weights(body.graph)
    body.capture_invariants(outer)
    number = _scalar("step", onnx_ir.DataType.INT64)
    condition = _scalar("goes_on", onnx_ir.DataType.BOOL)
    reads = []
    for name in body.sliced:
        read = row_at(all_rows(outer, name, body.loop), number, body.inputs[name], f"{name}.row")
        body.inputs[name].replace_all_uses_with(read.outputs[0])
        reads.append(read)
    passed = onnx_ir.node("Identity", [condition], name="goes_on")
    passed.outputs[0].name = "goes_on.next"
    described(passed.outputs[0], condition)
    # The outputs come from nodes of the step, so that there is a first one to stand before.
    body.graph.insert_before(body.graph[0], [*reads, passed])
    body.graph.name = "step"
    body.take_inputs([number, condition, *body.state])
    body.graph.outputs.insert(0, passed.outputs[0])
    node = onnx_ir.node(
        "Loop",
        [
            outer.stored("steps", torch.tensor(body.loop.steps)),
            outer.stored("always", torch.tensor(True)),
            *(outer.values[name] for name in body.loop.state),
        ],
        {"body": body.graph},
        num_outputs=len(body.loop.state),
        name="steps",
    )
    name_last(node, body)
    outer.append(node)
    return list(node.outputs)


def _scalar(name: str, dtype: Any) -> Any:
    import onnx_ir

    return onnx_ir.Value(name=name, shape=onnx_ir.Shape([]), type=onnx_ir.TensorType(dtype))
