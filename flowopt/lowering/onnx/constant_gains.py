"""Gains of ones for norms that have none.

RMSNormalization requires a gain. The exporter makes one at run time, of the shape of the input; where that is known,
it is stored: of some hundred bytes, and shared by all norms of one width.
"""

from typing import Any


def store_gains(model: Any) -> int:
    """Replace gains that are made at run time of a known size by stored ones, in place.

    Args:
        model: an ``onnx_ir.Model`` with recorded shapes.

    Returns:
        How many norms have a stored gain now.
    """
    import onnx_ir

    stored: dict[tuple[int, Any], Any] = {}
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "RMSNormalization" or node.domain != "" or node.graph is not model.graph:
            continue
        gain, source = node.inputs[1], node.inputs[0]
        maker = gain.producer()
        axis = node.attributes.get_int("axis", -1)
        is_last = source.shape is not None and axis in (-1, len(source.shape) - 1)
        if maker is None or maker.op_type != "ConstantOfShape" or not is_last or not isinstance(source.shape[-1], int):
            continue
        value = maker.attributes.get_tensor("value", None)
        if value is None or value.numpy().size != 1 or value.numpy().reshape(-1)[0] != 1:
            continue
        key = (source.shape[-1], value.dtype)
        if key not in stored:
            ones = onnx_ir.tensor(value.numpy().reshape(-1).repeat(source.shape[-1]), dtype=value.dtype)
            stored[key] = onnx_ir.Value(
                name=f"ones_{source.shape[-1]}",
                shape=onnx_ir.Shape([source.shape[-1]]),
                type=onnx_ir.TensorType(ones.dtype),
                const_value=ones,
            )
            model.graph.register_initializer(stored[key])
        node.replace_input_with(1, stored[key])
        count += 1
    return count
