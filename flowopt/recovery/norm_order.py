"""In which order norms are swapped: those before MLPs first, then those before attention, the final one last.

Source: the schedule under which layer norms were removed from GPT-2 by fine-tuning, one norm at a time.
"""

from collections.abc import Collection
from enum import IntEnum

import torch
from torch import fx

from flowopt.ir.constants import is_parameter_only
from flowopt.program.program import Program

_aten = torch.ops.aten
_ATTENTION = (_aten.scaled_dot_product_attention.default, _aten.softmax.int, _aten._softmax.default)
_PRODUCTS = (_aten.matmul.default, _aten.bmm.default, _aten.mm.default)
_JOINS = (_aten.add.Tensor, _aten.cat.default)


class _Reader(IntEnum):
    MLP = 0
    ATTENTION = 1
    HEAD = 2


def norm_order(program: Program, names: Collection[str]) -> tuple[str, ...]:
    """Names of norms' values in the order in which they are swapped, graph order within a kind.

    A norm before attention is one whose value comes to a softmax or to a product of two activations before it meets a
    value that does not descend from it; one that meets neither is the final one.
    """
    nodes = [node for node in program.graph.nodes if node.name in names]
    return tuple(node.name for node in sorted(nodes, key=_reader))


def _reader(norm: fx.Node) -> _Reader:
    below: set[fx.Node] = set()
    pending = list(norm.users)
    found = _Reader.HEAD
    # In graph order, so that both operands of an operator are known when it is looked at.
    while pending:
        node = min(pending)
        pending = [other for other in pending if other is not node]
        if node.op == "output":
            continue
        if node.target in _ATTENTION or (node.target in _PRODUCTS and not _has_weight(node)):
            return _Reader.ATTENTION
        if node.target in _JOINS and any(not is_parameter_only(o) and o not in below for o in node.all_input_nodes):
            found = _Reader.MLP
            continue
        below.add(node)
        pending += node.users
    return found


def _has_weight(node: fx.Node) -> bool:
    return any(is_parameter_only(operand) for operand in node.all_input_nodes)
