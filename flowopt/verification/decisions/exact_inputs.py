"""Inputs that decisions read as they come: nothing was rounded on the way, so nothing is undecided."""

from collections.abc import Sequence

import torch
from torch import fx

from flowopt.verification.decisions.decisions import Decision

_aten = torch.ops.aten
_MOVES = {
    _aten.view.default,
    _aten.reshape.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.expand.default,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.clone.default,
    _aten.alias.default,
}


def exact_input(node: fx.Node) -> str | None:
    """Name of the input whose elements the node holds unchanged; None where something was computed."""
    while node.op == "call_function" and node.target in _MOVES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.name if node.op == "placeholder" else None


def exact_inputs(decisions: Sequence[Decision]) -> frozenset[str]:
    """Inputs that some decision reads so; a copy of the ensemble must not move them across a boundary."""
    found = (exact_input(node) for one in decisions for node in one.deciding)
    return frozenset(name for name in found if name is not None)
