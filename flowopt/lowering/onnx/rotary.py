"""Rotary embeddings whose angles are the same for every sample.

The operator wants cosines and sines of shape (batch, positions, size / 2). Models that count positions alone have them
for a batch of one, which ONNX Runtime takes only where the batch is one.

Source: ONNX operators, opset 23: RotaryEmbedding.
"""

from typing import Any


def repeat_angles(model: Any) -> int:
    """Repeat cosines and sines of every rotary embedding along the batch, in place; shared ones once.

    Args:
        model: an ``onnx_ir.Model``.

    Returns:
        How many tensors were repeated.
    """
    import onnx_ir

    repeated: dict[int, Any] = {}
    for node in list(model.graph):
        if node.op_type != "RotaryEmbedding" or node.domain != "" or len(node.inputs) != 3:
            continue
        for index in (1, 2):
            angles = node.inputs[index]
            if _batch(angles) is not None and _batch(angles) == _batch(node.inputs[0]):
                continue
            if id(angles) not in repeated:
                batch = onnx_ir.node("Shape", [node.inputs[0]], {"start": 0, "end": 1})
                ones = onnx_ir.node("Constant", [], {"value_ints": [1, 1]})
                shape = onnx_ir.node("Concat", [batch.outputs[0], ones.outputs[0]], {"axis": 0})
                expand = onnx_ir.node("Expand", [angles, shape.outputs[0]])
                node.graph.insert_before(node, [batch, ones, shape, expand])
                repeated[id(angles)] = expand.outputs[0]
            node.replace_input_with(index, repeated[id(angles)])
    return len(repeated)


def _batch(value: Any) -> object:
    """The first size of a value; None where it is not recorded."""
    producer = value.producer()
    shape = value.shape
    if shape is None and producer is not None and producer.op_type in ("Cos", "Sin"):
        shape = producer.inputs[0].shape
    return None if shape is None else shape[0]
