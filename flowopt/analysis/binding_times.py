"""On which inputs each value depends: what is known before a loop, at a step, or only with the state.

Sizes are no dependency: how many rows an input has says nothing of what is in them.
"""

from collections.abc import Mapping

import torch
from torch import fx

from flowopt.ir.randomness import draws_random_numbers

# Stands beside input names for values that are drawn anew each time.
RANDOM = "(random)"
_SIZES = {torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default, torch.ops.aten.sym_stride.int}


def binding_times(graph: fx.Graph) -> Mapping[fx.Node, frozenset[str]]:
    """For every node the names of the inputs that its numbers depend on; ``RANDOM`` among them where it draws.

    The empty set: stored tensors, sizes, and what is computed of them alone.
    """
    found: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = frozenset({node.name})
        elif node.target in _SIZES:
            found[node] = frozenset()
        else:
            sources = [found[source] for source in node.all_input_nodes]
            found[node] = frozenset().union(*sources, {RANDOM} if draws_random_numbers(node) else ())
    return found
