"""Whether queries and keys of an attention are of the same tokens."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.moved_rows import TUPLE_NORMS, is_move
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
# By target: the argument that is the activation. Of two of them the product mixes tokens.
_LINEAR: dict[Any, int] = {
    _aten.linear.default: 0,
    _aten.addmm.default: 1,
    _aten.mm.default: 0,
    _aten.matmul.default: 0,
    _aten.convolution.default: 0,
    _aten.conv1d.default: 0,
    _aten.conv2d.default: 0,
}
_NORMS = {*TUPLE_NORMS, _aten.layer_norm.default, _aten.rms_norm.default, _aten.group_norm.default}
_CASTS = {_aten._to_copy.default, _aten.clone.default, _aten.alias.default, _aten.contiguous.default}
_JOINS = {_aten.cat.default, _aten.stack.default, _aten.repeat.default, _aten.index.Tensor}
_CUTS: dict[Any, int] = {
    _aten.slice.Tensor: 1,
    _aten.select.int: 1,
    _aten.split.Tensor: 2,
    _aten.split_with_sizes.default: 2,
}
_CUTS |= {_aten.split_with_sizes.default: 2, _aten.chunk.default: 2, _aten.unbind.int: 1}
# From the nearest linear layer on: a projection through few features, or one more in front.
_MOST_LAYERS = 3
_MOST_NODES = 300


def of_other_tokens(query: fx.Node, key: fx.Node) -> bool | None:
    """Whether the keys are computed from other tokens than the queries; None where no linear layer makes either.

    Tokens are the same where both come from one value, through moves, norms, arithmetic of each element and linear
    layers. A residual stream is followed through its sums, and an attention never.
    """
    queries, keys = [*_walk(query)], [*_walk(key)]
    if not any(layers for _, layers in (*queries, *keys)):
        return None
    return _tokens(queries).isdisjoint(_tokens(keys))


def _tokens(walked: Sequence[tuple[fx.Node, int]]) -> set[fx.Node]:
    """What the nearest linear layers read, and what that is computed from; without such layers all."""
    past = {node for node, layers in walked if layers}
    return past or {node for node, _ in walked}


def _walk(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """Every value that a node is computed from, token by token, and how many linear layers lie between."""
    pending, seen = [(node, 0)], set[tuple[fx.Node, int]]()
    while pending and len(seen) < _MOST_NODES:
        # The nearest first: what is cut off at the bound is the farthest.
        current, layers = pending.pop(0)
        if (current, layers) in seen:
            continue
        seen.add((current, layers))
        yield current, layers
        for source in _sources(current, is_past=layers > 0):
            after = layers + _is_linear(current)
            if after <= _MOST_LAYERS:
                pending.append((source, after))


def _is_linear(node: fx.Node) -> bool:
    place = _LINEAR.get(node.target)
    return place is not None and all(_is_stored(n) for n in node.all_input_nodes if n is not node.args[place])


def _sources(node: fx.Node, *, is_past: bool) -> list[fx.Node]:
    """What a node's tokens are computed from: none, where it mixes tokens or chooses some."""
    if _is_linear(node):
        found = [node.args[_LINEAR[node.target]]]
    elif node.target in _NORMS or node.target in _CASTS:
        found = [node.args[0]]
    elif is_move(node):
        found = [] if is_past and _cuts_tokens(node) else [node.args[0]]
    elif _is_pointwise(node) or (node.target in _JOINS and not is_past):
        found = [n for n in node.all_input_nodes if node.target in _JOINS or _is_whole(n, node)]
    else:
        found = []
    return [n for n in found if isinstance(n, fx.Node) and not _is_stored(n)]


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def _is_whole(node: fx.Node, result: fx.Node) -> bool:
    """A value of the result's shape: what is broadcast, as rotary angles are, says nothing of single tokens."""
    value, wanted = recorded_tensor(node), recorded_tensor(result)
    return value is not None and wanted is not None and _sizes(value) == _sizes(wanted)


def _sizes(value: Tensor) -> list[str]:
    return [str(size) for size in value.shape]


def _cuts_tokens(node: fx.Node) -> bool:
    """Whether a move takes a part along another axis than that of features."""
    source = node.args[0]
    if node.target is operator.getitem and isinstance(source, fx.Node):
        # Two parts of one split would meet in it.
        return _cuts_tokens(source)
    place = _CUTS.get(node.target)
    value = recorded_tensor(source) if isinstance(source, fx.Node) else None
    if place is None or value is None:
        return False
    axis = node.args[place] if len(node.args) > place else 0
    return axis not in (-1, value.dim() - 1)


def _is_stored(node: fx.Node) -> bool:
    """A parameter, or what is computed from such in moves and casts."""
    while node.op == "call_function" and (is_move(node) or node.target in _CASTS):
        source = node.args[0]
        assert isinstance(source, fx.Node)  # moves and casts have one
        node = source
    return node.op == "get_attr"
