"""What a claim rewrites into what, apart from stored tensors and shapes."""

from torch import fx

from flowopt.ir.constants import needed_nodes
from flowopt.verification.sites.region import Region


def pattern_of(region: Region, new: fx.Node) -> str:
    """A text that two claims share when both sides of both are the same operators with the same numbers.

    Args:
        region: of the claim.
        new: the value that replaces ``region.old``, in the graph after the pass.
    """
    given = {node for node in new.graph.nodes if node.name in region.shared}
    return f"{_side(region.old, set(region.roots))} -> {_side(new, given)}"


def _side(end: fx.Node, given: set[fx.Node]) -> list[str]:
    nodes = sorted(needed_nodes([end], given))
    number = {node: f"%{at}" for at, node in enumerate(sorted(given) + nodes)}
    return [
        "stored"
        if node.op == "get_attr"
        else f"{node.target} {fx.map_arg((node.args, node.kwargs), number.__getitem__)}"
        for node in nodes
    ]
