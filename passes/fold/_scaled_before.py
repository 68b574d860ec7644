"""Find the layers before a value whose scaling scales the value."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice, product

import torch
from torch import fx

from flowopt.analysis.feature_layout import MOVES, Layout, PlacedReader, initial_layout, placed_readers
from flowopt.ir.metadata import recorded_tensor
from flowopt.passes.fold._layers import EMBEDDING, LAYERS, feature_axis_of

_aten = torch.ops.aten
SUMS = frozenset({_aten.add.Tensor, _aten.sub.Tensor})
# Linear in each operand; a quotient in its first.
PRODUCTS = {_aten.mul.Tensor: 2, _aten.matmul.default: 2, _aten.bmm.default: 2, _aten.div.Tensor: 1}
SIZE_READERS = frozenset({_aten.sym_size.int})
_MAX_NODES = 40
_MAX_CANDIDATES = 8


class Kind(Enum):
    """Why layers around a value cannot take a scale."""

    NO_LAYER = "no layer"
    READ_ELSEWHERE = "read elsewhere"
    OTHER_AXIS = "other axis"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps a scale from its place, at ``node``."""

    kind: Kind
    message: str
    node: fx.Node


@dataclass(frozen=True, slots=True)
class Part:
    """Output features of one layer, and where they are in the value to be scaled.

    Attributes:
        layer: linear layer, convolution or embedding.
        features: those that are scaled.
        layout: of the scaled value, where only moves lead to it.
    """

    layer: fx.Node
    features: frozenset[int]
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class Before:
    """Scaling ``parts`` scales the value.

    Attributes:
        parts: of layers.
        between: operators from the layers to the value, and to what else reads the layers, in graph order.
        kept: values computed from other features of the layers.
        sizes: readers of nothing but sizes.
    """

    parts: tuple[Part, ...]
    between: tuple[fx.Node, ...]
    kept: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


def scaled_before(value: fx.Node, reader: fx.Node, *, moves_only: bool) -> Before | Obstacle:
    """Layers that scale ``value``, which ``reader`` reads.

    Args:
        value: is to be scaled.
        reader: the scale's own operator.
        moves_only: the scale has a factor per feature, so nothing but moves may stand between.
    """
    first: Obstacle | None = None
    for scaled in _candidates(value, moves_only, _MAX_NODES, {}):
        found = _checked(scaled, value, reader)
        if isinstance(found, Before):
            return found
        first = first or found
    return first or Obstacle(Kind.NO_LAYER, f"{value.name} ({value.target}) comes from no linear layer", value)


def _candidates(
    node: fx.Node, moves_only: bool, depth: int, known: dict[fx.Node, tuple[frozenset[fx.Node], ...]]
) -> tuple[frozenset[fx.Node], ...]:
    """Sets of nodes that are scaled together, layers included; the first few."""
    if node.op != "call_function" or depth == 0 or not is_floating(node):
        return ()
    if node.target in LAYERS or node.target is EMBEDDING:
        return (frozenset({node}),)
    if node not in known:
        found: list[frozenset[fx.Node]] = []
        for operands in _scaled_operands(node, moves_only):
            ways = [_candidates(operand, moves_only, depth - 1, known) for operand in operands]
            found += (frozenset({node}).union(*sets) for sets in islice(product(*ways), _MAX_CANDIDATES))
        known[node] = tuple(f for f in found if len(f) <= _MAX_NODES)[:_MAX_CANDIDATES]
    return known[node]


def is_floating(node: fx.Node) -> bool:
    """False for a tensor of integers, which would round a scaled value; a split is what its parts are."""
    value = recorded_tensor(node)
    return isinstance(node.meta.get("val"), (list, tuple)) if value is None else value.is_floating_point()


def _scaled_operands(node: fx.Node, moves_only: bool) -> Iterator[tuple[fx.Node, ...]]:
    """Operands which, all scaled, scale the node: alternatives."""
    inputs = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    if node.target in MOVES or node.target is operator.getitem:
        yield tuple(inputs[:1])
    elif moves_only:
        return
    elif node.target is _aten.neg.default or (node.target in SUMS and len(inputs) == 2):
        yield tuple(inputs)
    elif node.target is _aten.cat.default and isinstance(node.args[0], (list, tuple)):
        yield tuple(a for a in node.args[0] if isinstance(a, fx.Node))
    elif node.target in PRODUCTS:
        for operand in node.args[: PRODUCTS[node.target]]:
            if isinstance(operand, fx.Node):
                yield (operand,)


def _checked(scaled: frozenset[fx.Node], value: fx.Node, reader: fx.Node) -> Before | Obstacle:
    for node in scaled:
        if node.target in PRODUCTS and sum(a in scaled for a in node.args[:2]) != 1:
            return Obstacle(Kind.READ_ELSEWHERE, f"{node.name} multiplies the value with itself", node)
    found: list[tuple[fx.Node, list[PlacedReader]]] = []
    for layer in sorted(n for n in scaled if n.target in LAYERS or n.target is EMBEDDING):
        axis = feature_axis_of(layer, layer)
        layout = None if axis is None else initial_layout(layer, axis)
        if layout is None:
            return Obstacle(Kind.OTHER_AXIS, f"the number of features of {layer.name} is not known", layer)
        found.append((layer, list(placed_readers(layer, layout))))
    for node in scaled - _moved(found):
        strangers = [u for u in node.users if u not in scaled and u is not reader]
        if strangers:
            return _read_elsewhere(node, strangers[0])
    return _parts(scaled, found, value, reader)


def _moved(found: list[tuple[fx.Node, list[PlacedReader]]]) -> set[fx.Node]:
    """Layers, and moves of what they give."""
    return {n for layer, all_readers in found for n in (layer, *(p for r in all_readers for p in r.path))}


def _parts(
    scaled: frozenset[fx.Node],
    found: list[tuple[fx.Node, list[PlacedReader]]],
    value: fx.Node,
    reader: fx.Node,
) -> Before | Obstacle:
    parts, kept, sizes = [], dict[fx.Node, None](), []
    between = scaled - {layer for layer, _ in found}
    for layer, all_readers in found:
        own = [r for r in all_readers if r.source in scaled and (r.node in scaled or r.node is reader)]
        features = frozenset[int]().union(*(r.layout.all_features() for r in own))
        for other in (r for r in all_readers if r not in own):
            between = between.union(other.path)
            if other.node.target in SIZE_READERS:
                sizes.append(other.node)
            elif other.layout.all_features() & features:
                return _read_elsewhere(other.source, other.node)
            else:
                kept[other.source] = None
        at_end = [r.layout for r in own if r.node is reader and r.source is value]
        parts.append(Part(layer, features, at_end[0] if at_end else None))
    return Before(tuple(parts), tuple(sorted(between)), tuple(kept), tuple(sizes))


def _read_elsewhere(node: fx.Node, by: fx.Node) -> Obstacle:
    return Obstacle(Kind.READ_ELSEWHERE, f"{node.name} is read by {by.name} ({by.target}) too", by)
