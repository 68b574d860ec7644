"""Biases added inside of products that have few rows.

    Add(MatMul(x, W), b)  ->  Reshape(Gemm(Reshape(x), W, b))

ONNX Runtime adds a bias inside of a product only where the product is of matrices. For a batch of one with a dozen
tokens an operator costs about as much to start as to compute, and the addition alone is a tenth of a layer; with
many rows it makes no difference, or a small one for the worse. So this is done where a sample has few rows, which has
to be known when the file is written: the batch may be free.

Where ONNX Runtime has an operator that takes the bias with it, the addition stays what that operator is made of:
before a GELU, and between a product and a LayerNorm of its sum with the residual stream that nobody else reads.
"""

from collections.abc import Sequence
from typing import Any

_MOST_ROWS = 32
# ONNX Runtime's kernel on the CPU has no others.
_DTYPES = ("FLOAT", "DOUBLE")


def add_biases_in_products(model: Any) -> int:
    """Use Gemm for layers with a bias whose samples have at most 32 rows, in place.

    Args:
        model: an ``onnx_ir.Model`` with recorded shapes.

    Returns:
        How many layers use it now.
    """
    import onnx_ir

    made = _Made(model)
    count = 0
    for node in list(model.graph):
        found = _biased_product(node)
        if found is None or _is_fused_later(node):
            continue
        product, bias = found
        source, weight = product.inputs
        sizes, features = list(source.shape), weight.shape[1]
        flat = made.flattened(source)
        gemm = onnx_ir.node("Gemm", [flat, weight, bias])
        shape = made.sizes([-1, *sizes[1:-1], features])
        back = onnx_ir.node("Reshape", [gemm.outputs[0], shape])
        node.graph.insert_before(node, [gemm, back])
        old, new = node.outputs[0], back.outputs[0]
        new.shape, new.type = old.shape, old.type
        onnx_ir.convenience.replace_all_uses_with(old, new)
        count += 1
    return count


def _biased_product(node: Any) -> tuple[Any, Any] | None:
    """The product and the stored bias of an addition, where both are as Gemm takes them."""
    if node.op_type != "Add" or node.domain != "":
        return None
    for given, bias in (node.inputs, reversed(node.inputs)):
        product = given.producer()
        if product is None or product.op_type != "MatMul" or len(given.uses()) != 1 or given.is_graph_output():
            continue
        weight = product.inputs[1]
        if (
            _has_few_rows(product.inputs[0].shape)
            and _stored_rank(weight) == 2
            and _stored_rank(bias) == 1
            and bias.shape[0] == weight.shape[1]
            and weight.dtype is not None
            and weight.dtype.name in _DTYPES
            and not node.outputs[0].is_graph_output()
        ):
            return product, bias
    return None


def _has_few_rows(shape: Sequence[Any] | None) -> bool:
    if shape is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape[1:]):
        return False
    rows = 1
    for size in shape[1:-1]:
        rows *= size
    return rows <= _MOST_ROWS


def _stored_rank(value: Any) -> int | None:
    return len(value.shape) if value.const_value is not None and value.shape is not None else None


def _is_fused_later(addition: Any) -> bool:
    """Whether ONNX Runtime makes one operator of the addition and what reads it."""
    readers = [use.node for use in addition.outputs[0].uses()]
    if len(readers) != 1:
        return False
    if readers[0].op_type == "Gelu":
        return True
    sums = readers[0].outputs[0]
    behind = [use.node.op_type for use in sums.uses()]
    return readers[0].op_type == "Add" and behind == ["LayerNormalization"] and not sums.is_graph_output()


class _Made:
    """Values that several layers share."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._flat: dict[int, Any] = {}
        self._sizes: dict[tuple[int, ...], Any] = {}

    def flattened(self, source: Any) -> Any:
        """A value as a matrix, made where its first reader stands."""
        import onnx_ir

        if id(source) not in self._flat:
            reshape = onnx_ir.node("Reshape", [source, self.sizes([-1, source.shape[-1]])])
            producer = source.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], reshape)
            else:
                self._graph.insert_after(producer, reshape)
            self._flat[id(source)] = reshape.outputs[0]
        return self._flat[id(source)]

    def sizes(self, sizes: Sequence[int]) -> Any:
        """A stored shape."""
        import onnx_ir

        key = tuple(sizes)
        if key not in self._sizes:
            value = onnx_ir.tensor(list(sizes), dtype=onnx_ir.DataType.INT64)
            self._sizes[key] = onnx_ir.Value(
                name="sizes_" + "_".join("free" if size < 0 else str(size) for size in sizes),
                shape=onnx_ir.Shape([len(sizes)]),
                type=onnx_ir.TensorType(onnx_ir.DataType.INT64),
                const_value=value,
            )
            self._graph.register_initializer(self._sizes[key])
        return self._sizes[key]
