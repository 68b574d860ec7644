"""What every flowopt graph must obey, checked after every pass."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor


def violations(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """One sentence per broken rule; nothing for a legal graph.

    Rules: torch.fx's own lint; only placeholders, ``get_attr`` of known tensors, functional operators and
    one output; no operator that writes into its arguments; every tensor a node yields has recorded
    metadata, and that of a stored tensor agrees with it; no node without a reader; a flat tuple of nodes returned.
    """
    try:
        graph.lint()
    except RuntimeError as error:
        # The rest of the message is the whole graph.
        yield f"torch.fx lint: {str(error).splitlines()[0]}"
    for node in graph.nodes:
        if node.op == "get_attr":
            yield from _stored_tensor(node, tensors)
        elif node.op == "call_function":
            yield from _operator(node)
        elif node.op == "output":
            if not isinstance(node.args[0], tuple) or not all(isinstance(a, fx.Node) for a in node.args[0]):
                yield f"{node.name}: returns {node.args[0]}, not a flat tuple of nodes"
        elif node.op != "placeholder":
            yield f"{node.name}: node kind {node.op} is not functional ATen"
        if node.op in ("get_attr", "call_function") and not node.users:
            yield f"{node.name}: nobody reads it"


def _stored_tensor(node: fx.Node, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    name = str(node.target)
    if name not in tensors:
        yield f"{node.name}: no tensor is stored under {name!r}"
        return
    recorded = recorded_tensor(node)
    if recorded is None:
        yield f"{node.name}: no recorded metadata"
    elif (recorded.dtype, recorded.shape) != (tensors[name].dtype, tensors[name].shape):
        yield (
            f"{node.name}: recorded {recorded.dtype} {list(recorded.shape)}, "
            f"stored {tensors[name].dtype} {list(tensors[name].shape)}"
        )


def _operator(node: fx.Node) -> Iterator[str]:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if target._schema.is_mutable:
            yield f"{node.name}: {target} writes into its arguments"
        returns_tensor = any("Tensor" in str(r.type) for r in target._schema.returns)
        if returns_tensor and node.meta.get("val") is None:
            yield f"{node.name}: no recorded metadata"
    elif getattr(target, "__module__", None) not in ("_operator", "math", "torch", "torch._ops"):
        yield f"{node.name}: {target} is neither an ATen operator nor arithmetic on sizes"
