"""Find sums of which several terms are linear in one same value: a layer and its adapters."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

_aten = torch.ops.aten
ADDITIONS = (_aten.add.Tensor, _aten.sub.Tensor)
SCALES = (_aten.mul.Tensor, _aten.div.Tensor)
CONVOLUTIONS = tuple(getattr(getattr(_aten, f"conv{n}d"), kind) for n in (1, 2, 3) for kind in ("default", "padding"))
CONTRACTIONS = (_aten.linear.default, _aten.embedding.default, *CONVOLUTIONS)
RESHAPES = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default)
# What they read is what they give, but for rounding.
REPEATS = (
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten._to_copy.default,
    _aten.to.dtype,
    _aten.dropout.default,
)
# Between a value and a sum of its layers stand a few operators; a longer way is no adapter.
_MOST_OPERATORS = 64


@dataclass(frozen=True, slots=True)
class Term:
    """``factor`` times ``node``: one addend of a sum.

    Attributes:
        factor: 1, -1 or what the addition scales by.
        node: the addend.
        region: operators that compute it from the sum's ``x``, itself included, latest first; empty for other values.
    """

    factor: float
    node: fx.Node
    region: tuple[fx.Node, ...] = ()


@dataclass(frozen=True, slots=True)
class LinearSum:
    """A sum whose ``terms`` are chains of layers of ``x``.

    Attributes:
        x: the value that all terms read.
        terms: at least two, each with a region.
        others: addends that are none, stored ones among them.
        additions: the operators that add all of these, the sum itself first.
    """

    x: fx.Node
    terms: tuple[Term, ...]
    others: tuple[Term, ...]
    additions: tuple[fx.Node, ...]

    @property
    def operators(self) -> frozenset[fx.Node]:
        """All operators from ``x`` to the sum."""
        return frozenset(self.additions).union(*(term.region for term in self.terms))

    @property
    def layers(self) -> list[fx.Node]:
        """Those operators that contract with a weight, in graph order."""
        return [n for n in sorted(self.operators) if n.target in CONTRACTIONS]

    @property
    def before_layers(self) -> frozenset[fx.Node]:
        """Those operators that no layer comes before: casts, reshapes and scales of ``x``."""
        before = {self.x}
        for node in sorted(self.operators):
            if node.target not in CONTRACTIONS and all(n in before for n in data_inputs(node)):
                before.add(node)
        return frozenset(before) - {self.x}


def linear_sums(graph: fx.Graph) -> list[fx.Node]:
    """The last addition of every such sum, in graph order; of nested ones that which has more terms, else the inner."""
    found: dict[fx.Node, LinearSum] = {}
    for node in graph.nodes:
        total = linear_sum(node) if node.target in ADDITIONS else None
        if total is None:
            continue
        inner = [n for n in found if n in total.operators]
        if not any(n in total.additions and len(found[n].terms) >= len(total.terms) for n in inner):
            for n in inner:
                del found[n]
            found[node] = total
    return list(found)


def linear_sum(node: fx.Node) -> LinearSum | None:
    """The terms of an addition; None when no two of them are chains of layers of one value.

    Scales along the way may be anything: whether they are stored is for the reader to check.
    """
    if not _adds_values(node) or recorded_tensor(node) is None or is_parameter_only(node):
        return None
    additions: list[fx.Node] = []
    terms = list(_addends(node, 1.0, additions))
    sources = [dict(_sources(term.node)) for term in terms]
    shared = Counter(x for found in sources for x in found)
    count = max(shared.values(), default=0)
    if count < 2:
        return None
    x = max(x for x in shared if shared[x] == count)  # the nearest that has most terms
    paired = list(zip(terms, sources, strict=True))
    linear = tuple(Term(term.factor, term.node, found[x]) for term, found in paired if x in found)
    return LinearSum(x, linear, tuple(term for term, found in paired if x not in found), tuple(additions))


def weight_of(layer: fx.Node) -> fx.Node:
    """The weight of a layer, or the table of an embedding."""
    weight = layer.args[0 if layer.target is _aten.embedding.default else 1]
    assert isinstance(weight, fx.Node)
    return weight


def bias_of(layer: fx.Node) -> fx.Node | None:
    """The bias of a layer, if it has one."""
    if layer.target is _aten.embedding.default:
        return None
    bias = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None


def is_per_feature(stored: fx.Node, value: fx.Node, axis: int) -> bool:
    """True when a stored operand holds one number, or one for each feature of ``value``.

    Args:
        stored: the operand.
        value: what the operator gives.
        axis: of the features, counted from the last.
    """
    sizes = sizes_as_text(stored)
    if set(sizes) <= {"1"}:
        return True
    features = static_size(value, axis)
    others = sizes[:axis] + sizes[axis:][1:]
    return len(sizes) >= -axis and features is not None and sizes[axis] == str(features) and set(others) <= {"1"}


def data_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """Inputs of an operator that are not stored tensors and what is computed from them."""
    return tuple(n for n in node.all_input_nodes if not is_parameter_only(n))


def _addends(node: fx.Node, factor: float, additions: list[fx.Node]) -> Iterator[Term]:
    additions.append(node)
    alpha = node.kwargs.get("alpha", 1)
    second = factor * float(alpha) * (1 if node.target is _aten.add.Tensor else -1)  # type: ignore[arg-type]  # a number
    for operand, scale in ((node.args[0], factor), (node.args[1], second)):
        assert isinstance(operand, fx.Node)  # or else ``_adds_values`` had said no
        if _adds_values(operand) and len(operand.users) == 1 and sizes_as_text(operand) == sizes_as_text(node):
            yield from _addends(operand, scale, additions)
        else:
            yield Term(scale, operand)


def _adds_values(node: fx.Node) -> bool:
    return node.target in ADDITIONS and all(isinstance(a, fx.Node) for a in node.args[:2])


def _sources(node: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """Values of which a node is a sum of chains with a layer each, nearest first, and the operators between."""
    # Each open value, and whether every way to it leads through a layer.
    open_values = {node: False}
    region: list[fx.Node] = []
    while open_values and len(region) < _MOST_OPERATORS:
        latest = max(open_values)
        if len(open_values) == 1 and open_values[latest]:
            yield latest, tuple(region)
        below = open_values.pop(latest) or latest.target in CONTRACTIONS
        inputs = _chain_inputs(latest)
        if not inputs:
            return
        region.append(latest)
        for value in inputs:
            open_values[value] = below and open_values.get(value, True)


def _chain_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """The values that an operator of a chain carries on; none for other operators."""
    if node.target in ADDITIONS:
        return data_inputs(node)
    if node.target is _aten.embedding.default:
        return (node.args[1],) if isinstance(node.args[1], fx.Node) else ()
    if node.target is _aten.mul.Tensor:
        # Of two values, one is the scale: the one that no layer computes.
        values = data_inputs(node)
        layers = tuple(v for v in values if v.target in (*CONTRACTIONS, *SCALES))
        return (layers or values)[:1]
    if node.target in (*CONTRACTIONS, *RESHAPES, *REPEATS, _aten.div.Tensor, _aten.neg.default):
        return tuple(n for n in node.args[:1] if isinstance(n, fx.Node) and not is_parameter_only(n))
    return ()
