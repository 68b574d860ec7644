"""Attention that is written out: a softmax over scores whose weights are multiplied with values."""

import operator
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import fx

from flowopt.analysis.feature_layout import MOVES
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
_SOFTMAXES = {_aten.softmax.int, _aten._softmax.default, _aten._safe_softmax.default}
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default, _aten.baddbmm.default}
_CHOICES = {_aten.where.self, _aten.where.ScalarSelf, _aten.where.ScalarOther, _aten.where.Scalar}
_FILLS = {_aten.masked_fill.Scalar, _aten.masked_fill.Tensor}
_SUMS = {_aten.add.Tensor, _aten.sub.Tensor}
_CATS = {_aten.cat.default}
_LARGEST = {_aten.max.dim, _aten.amax.default}
_TANH = {_aten.tanh.default}
# Operators between a product and the softmax, or the softmax and a product: written attention has fewer than ten.
_MOST_NODES = 40


@dataclass(frozen=True, slots=True)
class Bias:
    """Something that is added to scores, or that hides some of them.

    Attributes:
        node: the bias, or a condition.
        is_added: it is no condition.
        is_inverted: a condition is true where it hides.
        scores: node whose scores it changes.
    """

    node: fx.Node
    is_added: bool
    is_inverted: bool
    scores: fx.Node


@dataclass(frozen=True, slots=True)
class WrittenAttention:
    """The parts of attention that is written out.

    Attributes:
        output: the product with the values.
        softmax: over the scores.
        query, key: what the scores are a product of; the softmax's input where they are none.
        value: what is weighed.
        biases: what is added to the scores or hides some, in graph order.
        caps: tanh of scores.
        joined: operators that put other columns beside the scores.
    """

    output: fx.Node
    softmax: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    biases: tuple[Bias, ...]
    caps: tuple[fx.Node, ...]
    joined: tuple[fx.Node, ...]


def written_attention(output: fx.Node) -> WrittenAttention | None:
    """The attention of which a product with computed values is the end; None where it is the end of none."""
    if output.op != "call_function" or output.target not in (_aten.matmul.default, _aten.bmm.default):
        return None
    weights, value = output.args[:2]
    assert isinstance(weights, fx.Node) and isinstance(value, fx.Node)
    if is_parameter_only(value):
        return None
    softmax = _softmax_before(weights)
    if softmax is None or not _is_over_last_axis(softmax):
        return None
    source = softmax.args[0]
    assert isinstance(source, fx.Node)
    scores = _Scores()
    scores.carries(source)
    products = sorted(scores.products)
    query, key = _factors(products[0]) if products else (source, source)
    return WrittenAttention(
        output=output,
        softmax=softmax,
        query=query,
        key=key,
        value=value,
        biases=tuple(sorted(scores.biases, key=lambda bias: bias.node)),
        caps=tuple(sorted(scores.caps)),
        joined=tuple(sorted(scores.joined)),
    )


def _softmax_before(weights: fx.Node) -> fx.Node | None:
    """The softmax that gives the weights, through moves and elementwise operators."""
    pending, seen = deque([weights]), set[fx.Node]()
    while pending and len(seen) < _MOST_NODES:
        node = pending.popleft()
        if node.target in _SOFTMAXES:
            return node
        if node not in seen and (node.target in MOVES or _is_elementwise(node)):
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return None


def _is_over_last_axis(softmax: fx.Node) -> bool:
    value, axis = recorded_tensor(softmax), softmax.args[1]
    return value is not None and isinstance(axis, int) and axis % value.dim() == value.dim() - 1


def _is_elementwise(node: fx.Node) -> bool:
    # Choices between a tensor and a number lack the tag.
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    return node.target in _CHOICES or torch.Tag.pointwise in tags


def _factors(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Queries and keys; the keys before they were turned."""
    first = 1 if product.target is _aten.baddbmm.default else 0
    query, key = product.args[first : first + 2]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
    turned = key.args[0] if key.target is _aten.transpose.int and set(_axes(key)) == {-1, -2} else key
    assert isinstance(turned, fx.Node)
    return query, turned


def _axes(transpose: fx.Node) -> tuple[int, ...]:
    value = recorded_tensor(transpose)
    rank = 0 if value is None else value.dim()
    return tuple(axis - rank if axis >= 0 else axis for axis in transpose.args[1:3] if isinstance(axis, int))


@dataclass(slots=True)
class _Scores:
    """What is found on the way back from a softmax to the product of queries and keys."""

    products: set[fx.Node] = field(default_factory=set)
    biases: list[Bias] = field(default_factory=list)
    caps: set[fx.Node] = field(default_factory=set)
    joined: set[fx.Node] = field(default_factory=set)
    _known: dict[fx.Node, bool] = field(default_factory=dict)

    def carries(self, node: fx.Node) -> bool:
        """Whether a node is computed from a product by elementwise operators and moves; notes what they are."""
        if node not in self._known:
            self._known[node] = False
            self._known[node] = len(self._known) <= _MOST_NODES and self._is_carrier(node)
        return self._known[node]

    def _is_carrier(self, node: fx.Node) -> bool:
        if node.target in _PRODUCTS:
            return self._is_product(node)
        is_inner = node.target in MOVES | _CATS | _LARGEST or node.target is operator.getitem or _is_elementwise(node)
        if not is_inner:
            return False
        sources = {source: self.carries(source) for source in node.all_input_nodes}
        if any(sources.values()):
            self._note(node, sources)
            return True
        return False

    def _is_product(self, node: fx.Node) -> bool:
        query, key = _factors(node)
        if is_parameter_only(query) or is_parameter_only(key):
            return False
        self.products.add(node)
        added = node.args[0] if node.target is _aten.baddbmm.default else None
        if isinstance(added, fx.Node) and node.kwargs.get("beta", 1) != 0:
            self.biases.append(Bias(added, True, False, node))
        return True

    def _note(self, node: fx.Node, sources: dict[fx.Node, bool]) -> None:
        others = [source for source, carries in sources.items() if not carries]
        if node.target in _TANH:
            self.caps.add(node)
        elif node.target in _CATS and others:
            self.joined.add(node)
        elif node.target in _SUMS and others:
            self.biases.append(Bias(others[0], True, False, node))
        elif node.target in _FILLS | _CHOICES and others:
            first, second = node.args[:2]
            condition = second if node.target in _FILLS else first
            if isinstance(condition, fx.Node) and condition in others:
                is_chosen = isinstance(second, fx.Node) and sources.get(second, False)
                self.biases.append(Bias(condition, False, not is_chosen, node))
