"""One product in ONNX Runtime, by itself: its kernels and torch's are each faster at some shapes.

Weights are stored, as in a model, so that ONNX Runtime packs them once.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_OPSET, _IR_VERSION = 18, 9
_CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
_MATRIX_PRODUCTS = ("aten.mm.default", "aten.bmm.default", "aten.matmul.default")


def onnx_product(operator: str, arguments: Sequence[Any], threads: int) -> Callable[[], Any] | None:
    """A call of the product; None where ONNX Runtime is not installed, or this has no form for the product.

    Args:
        operator: name below ``torch.ops``, as ``aten.linear.default``.
        arguments: of the call, with tensors. A bias is left out: no product is faster with one.
        threads: of ONNX Runtime within one operator.
    """
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if find_spec("onnxruntime") is None or any(t.dtype != torch.float32 for t in tensors):
        return None
    match operator:
        case "aten.linear.default":
            return _session("MatMul", arguments[0], arguments[1].t(), {}, threads)
        case "aten.addmm.default":
            return _session("MatMul", arguments[1], arguments[2], {}, threads)
        case _ if operator in _MATRIX_PRODUCTS:
            return _session("MatMul", arguments[0], arguments[1], {}, threads)
        case "aten.convolution.default" if not arguments[6]:
            return _convolution(arguments[0], arguments[1], (*arguments[3:6], arguments[8]), threads)
        case _ if operator in _CONVOLUTIONS:
            return _convolution(arguments[0], arguments[1], arguments[3:], threads)
    return None


def _convolution(source: Tensor, weight: Tensor, given: Sequence[Any], threads: int) -> Callable[[], Any] | None:
    """Stride, padding, dilation and groups as far as they are given."""
    defaults: list[Any] = [1, 0, 1, 1]
    stride, padding, dilation, groups = [*given, *defaults[len(given) :]]
    if isinstance(padding, str):
        return None
    axes = source.dim() - 2
    pads = _each(padding, axes)
    attributes = {"strides": _each(stride, axes), "dilations": _each(dilation, axes), "group": groups}
    return _session("Conv", source, weight, attributes | {"pads": [*pads, *pads]}, threads)


def _each(value: Any, axes: int) -> list[int]:
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    return found * axes if len(found) == 1 else found


def _session(
    operator: str, source: Tensor, weight: Tensor, attributes: Mapping[str, Any], threads: int
) -> Callable[[], Any]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    stored = numpy_helper.from_array(weight.contiguous().numpy(), "weight")
    graph = helper.make_graph(
        [helper.make_node(operator, ["source", "weight"], ["result"], **attributes)],
        "product",
        [helper.make_tensor_value_info("source", TensorProto.FLOAT, list(source.shape))],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [stored],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Beyond 2 GiB a message of ONNX cannot be written; no product of a model that fits the bench has such a weight.
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"source": source.contiguous().numpy()}
    return lambda: session.run(None, feeds)
