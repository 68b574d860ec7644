"""Use operators of ONNX that stand for several of torch's: those that no graph pass can name.

Rotary embeddings by onnxscript's rules, attention in its form of rank 3, what ONNX Runtime asks of both (angles and
masks that are not broadcast), and products that add their bias. What comes out is verified like everything that is
lowered; a file that differs is lowered again without.
"""

from typing import Any

from flowopt.lowering.onnx.attention_layout import keep_heads_last
from flowopt.lowering.onnx.attention_mask import repeat_masks
from flowopt.lowering.onnx.constant_gains import store_gains
from flowopt.lowering.onnx.few_rows import add_biases_in_products
from flowopt.lowering.onnx.rotary import repeat_angles


def fuse(model: Any) -> None:
    """Fuse operators of a cleaned ``onnx_ir.Model`` in place."""
    from onnx_ir.passes import common
    from onnxscript.rewriter import onnx_fusions

    onnx_fusions.fuse(model)
    # Its rules compute the angles once per embedding; equal ones are one value again before they are repeated.
    common.CommonSubexpressionEliminationPass()(model)
    keep_heads_last(model)
    store_gains(model)
    common.RemoveUnusedNodesPass()(model)
    repeat_angles(model)
    repeat_masks(model)
    add_biases_in_products(model)
    common.RemoveUnusedNodesPass()(model)
