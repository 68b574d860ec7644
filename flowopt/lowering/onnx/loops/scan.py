"""The loop as ONNX Scan: no counter, no condition; tables and sequences are what it scans.

Source: ONNX operators: Scan.
"""

from typing import Any

import torch

from flowopt.lowering.onnx.loops.body import Body, all_rows, name_last
from flowopt.lowering.onnx.loops.outer import Outer


def write_scan(outer: Outer, body: Body) -> list[Any]:
    """Add the loop behind what is there; weights and invariants are read from around it.

    Returns:
        The last state.
    """
    import onnx_ir

    outer.take_weights(body.graph)
    body.capture_invariants(outer)
    scanned = [body.inputs[name] for name in body.sliced]
    values = [all_rows(outer, name, body.loop) for name in body.sliced]
    if not scanned:
        # Scan runs as often as what it scans has rows.
        values = [outer.stored("steps", torch.arange(body.loop.steps))]
        scanned = [onnx_ir.Value(name="step", shape=onnx_ir.Shape([]), type=onnx_ir.TensorType(values[0].dtype))]
    body.take_inputs([*body.state, *scanned])
    body.graph.name = "step"
    node = onnx_ir.node(
        "Scan",
        [*(outer.values[name] for name in body.loop.state), *values],
        {"body": body.graph, "num_scan_inputs": len(scanned)},
        num_outputs=len(body.loop.state),
        name="steps",
    )
    name_last(node, body)
    outer.append(node)
    return list(node.outputs)
