"""Masks of attention that are the same for every query.

ONNX lets a mask (batch, heads, 1, keys) stand for all queries; ONNX Runtime takes none that has not as many rows as
there are queries.

Source: ONNX operators, opset 23: Attention, attn_mask.
"""

from typing import Any


def repeat_masks(model: Any) -> int:
    """Repeat masks of one row for every query, in place; a mask that several attentions share once.

    Args:
        model: an ``onnx_ir.Model`` with recorded shapes, whose attentions are of rank 3 or 4.

    Returns:
        How many masks were repeated.
    """
    import onnx_ir

    repeated: dict[int, Any] = {}
    for node in list(model.graph):
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if node.op_type != "Attention" or node.domain != "" or mask is None or mask.shape is None:
            continue
        query = node.inputs[0]
        if len(mask.shape) < 2 or mask.shape[-2] != 1 or query.shape is None or query.shape[-2] == 1:
            continue
        if id(mask) not in repeated:
            # Positions are the last axis but one of either form: (batch, heads, positions, size) or without heads.
            axis = len(query.shape) - 2
            length = onnx_ir.node("Shape", [query], {"start": axis, "end": axis + 1})
            one = onnx_ir.node("Constant", [], {"value_ints": [1]})
            shape = onnx_ir.node("Concat", [length.outputs[0], one.outputs[0]], {"axis": 0})
            expand = onnx_ir.node("Expand", [mask, shape.outputs[0]])
            node.graph.insert_before(node, [length, one, shape, expand])
            expand.outputs[0].type = mask.type
            repeated[id(mask)] = expand.outputs[0]
        node.replace_input_with(3, repeated[id(mask)])
    return len(repeated)
