"""Remove what the exporter leaves behind: shape arithmetic on constants, repeated and dead nodes. No rewriting.

Layers stay as the passes left them: no fusion, no folded norms. Evaluation of constants is limited to small ones;
the one thing that happens to weights is that a transposed weight is stored transposed, for which nothing is computed.
"""

from typing import Any

from torch import Tensor

# Elements. Shape arithmetic and masks of a few thousand; never a weight matrix.
MAX_FOLDED_INPUT = 1024
MAX_FOLDED_OUTPUT = 4096


def clean(model: Any) -> None:
    """Simplify an ``onnx_ir.Model`` in place.

    Args:
        model: as torch's exporter built it with ``optimize=False``.
    """
    from onnx_ir.passes import common

    common.InlinePass()(model)
    _fold_constants(model)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(size_limit=MAX_FOLDED_INPUT),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # onnx_ir left it unannotated
        common.RemoveUnusedOpsetsPass(),
    ):
        step(model)
    _store_transposed(model)


def _fold_constants(model: Any) -> None:
    from onnxscript.optimizer import fold_constants

    fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=MAX_FOLDED_INPUT,
        output_size_limit=MAX_FOLDED_OUTPUT,
        # By default it copies transposed weights of any size.
        should_fold=lambda node: False if node.op_type == "Transpose" else None,
    )


def _store_transposed(model: Any) -> None:
    """Replace ``Transpose(weight)`` by a transposed view of the weight, where nobody reads it the other way round.

    A tied weight that is read both ways stays as it is: stored twice it would cost more than the transposition.
    """
    from onnx_ir.tensor_adapters import TorchTensor

    for value in list(model.graph.initializers.values()):
        raw = getattr(value.const_value, "raw", None)
        readers = [usage.node for usage in value.uses()]
        perms = {_permutation(node) for node in readers}
        if not isinstance(raw, Tensor) or len(perms) != 1 or value.is_graph_output() or value.is_graph_input():
            continue
        perm = perms.pop()
        if perm is None or any(node.outputs[0].is_graph_output() for node in readers):
            continue
        permuted = raw.permute(perm)
        value.const_value = TorchTensor(permuted, name=value.name)
        value.shape = value.const_value.shape
        for node in readers:
            node.outputs[0].replace_all_uses_with(value)
            node.graph.remove(node, safe=True)


def _permutation(node: Any) -> tuple[int, ...] | None:
    if node.op_type != "Transpose" or node.domain != "" or "perm" not in node.attributes:
        return None
    return tuple(node.attributes["perm"].as_ints())
