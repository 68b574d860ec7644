"""A fingerprint of a graph and its tensors, to see whether something changed.

Tensors are compared by identity and by torch's in-place version counter, not by content: a pass that
writes into a parameter moves the counter, and hashing gigabytes after every pass would not be free.
"""

import hashlib
from collections.abc import Mapping

from torch import Tensor, fx


def fingerprint(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over nodes, arguments, and the identity and version of every tensor."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        digest.update(f"{_line(node)}\n".encode())
    for name, tensor in tensors.items():
        version = 0 if tensor.is_inference() else tensor._version
        digest.update(f"{name}|{id(tensor)}|{tensor.data_ptr()}|{version}\n".encode())
    return digest.hexdigest()


def same_structure(left: fx.Graph, right: fx.Graph) -> bool:
    """True when two graphs have the same nodes with the same names, operators and readers."""
    if len(left.nodes) != len(right.nodes):
        return False
    return all(_line(a) == _line(b) for a, b in zip(left.nodes, right.nodes, strict=True))


def _line(node: fx.Node) -> str:
    return f"{node.name}|{node.op}|{node.target}|{node.args}|{node.kwargs}"
