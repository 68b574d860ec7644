"""The region of a claim: both sides, and the values where they start.

The new side starts at nodes that existed before the pass: the *shared* values. They are not free to be anything:
one may be computed from another (two equal subexpressions, of which one replaces the other), or be what a ReLU gave.
So the region is widened upwards, on the original's side, to *roots* that can hold any number, such as the output of a
linear layer, and everything in between is computed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.analysis.input_roles import Kind, input_role
from flowopt.ir.constants import is_parameter_only, needed_nodes
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default
# What these compute can be any tensor of its shape, for some weights.
_FREE_PRODUCERS = {
    _aten.linear.default,
    _aten.addmm.default,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.matmul.default,
    _aten.baddbmm.default,
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv1d.padding,
    _aten.conv2d.padding,
    _aten.conv3d.padding,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
    _aten.convolution.default,
    _aten.embedding.default,
    _ATTENTION,
}
_SUMS = {_aten.add.Tensor, _aten.sub.Tensor}


@dataclass(frozen=True, slots=True)
class Region:
    """One claim's region, by nodes of the graph before the pass.

    Attributes:
        old: the replaced node.
        shared: names of the nodes that the new side reads.
        roots: nodes that get values; ``old`` and every shared node can be computed from them and stored tensors.
        free: those roots that take any number; the others keep what the model computes from integers.
    """

    old: fx.Node
    shared: frozenset[str]
    roots: tuple[fx.Node, ...]
    free: frozenset[fx.Node]

    @property
    def holds_attention(self) -> bool:
        """True when a kernel of attention computes the replaced value."""
        return any(n.target is _ATTENTION for n in needed_nodes([self.old], set(self.roots)))


class Regions:
    """Finds regions in one program."""

    def __init__(self, program: Program) -> None:
        self.nodes: dict[str, fx.Node] = {n.name: n for n in program.graph.nodes}
        self._activations = _activations(program)

    def of(self, old: str, new: fx.Node) -> Region:
        """Region of the claim that ``new``, of a changed copy of the graph, equals the node called ``old``."""
        shared = {self.nodes[name] for name in _shared(new, self.nodes)}
        start = self.nodes[old]
        roots = shared if start in shared else shared | set(_beside(start, shared))
        common = _before({start}) & _before(shared)
        integers = shared - self._activations
        while (bound := self._bound(roots, common, integers)) is not None:
            roots = (roots - {bound}) | {n for n in bound.all_input_nodes if not is_parameter_only(n)}
        free = frozenset(n for n in roots if n in self._activations and recorded_tensor(n) is not None)
        names = frozenset(n.name for n in shared)
        return Region(start, names, tuple(sorted(roots, key=lambda n: n.name)), free)

    def is_activation(self, node: fx.Node) -> bool:
        """True when the node depends on features or embeddings, not on integers alone."""
        return node in self._activations

    def _bound(self, roots: set[fx.Node], common: set[fx.Node], integers: set[fx.Node]) -> fx.Node | None:
        """The last root that is not free.

        It depends on another one, or its operator restricts its values, or one side alone reads it: then it may equal
        what the other reads in its place, such as a second embedding of the same ids. So may an embedding of integers
        that the new side reads.
        """
        # Sizes and masks keep what the model computes, whatever an activation behind them is.
        binding = roots & self._activations
        for node in sorted(roots, reverse=True):
            if node.op == "placeholder":
                continue
            value = recorded_tensor(node)
            is_one_sided = node not in common and value is not None and value.is_floating_point()
            is_tied = is_one_sided or _is_embedded(node, integers)
            if is_tied or self._is_restricted(node) or _depends_on(node, binding - {node}):
                return node
        return None

    def _is_restricted(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return False  # sizes are bound, and known
        if node not in self._activations:
            return not isinstance(value, Tensor)  # a tuple; a tensor keeps what the model computes
        if node.target in _SUMS:
            return not self._is_free_sum(node)
        return node.target not in _FREE_PRODUCERS

    def _is_free_sum(self, node: fx.Node) -> bool:
        """Of two activations, or of one and a stored tensor: a table of positions restricts nothing."""
        sides = [side for side in node.args[:2] if isinstance(side, fx.Node)]
        are_known = all(side in self._activations or is_parameter_only(side) for side in sides)
        if len(sides) != 2 or not are_known or not any(side in self._activations for side in sides):
            return False
        # x - mean(x) has no mean, whatever x is.
        first, second = sides
        return first is not second and not _is_made_of(first, second) and not _is_made_of(second, first)


def _activations(program: Program) -> set[fx.Node]:
    """Values that depend on features or embeddings; the others are made of integers: positions, masks, sizes."""
    roles = {i.name: input_role(program.node(i.name), program.example.get(i.name)) for i in program.inputs}
    found: set[fx.Node] = set()
    node: fx.Node
    for node in program.graph.nodes:
        is_size = isinstance(node.meta.get("val"), (int, torch.SymInt))
        is_feature = node.op == "placeholder" and roles[node.name].kind is Kind.FEATURES
        is_derived = any(n in found for n in node.all_input_nodes)
        if not is_size and (is_feature or is_derived or node.target is _aten.embedding.default):
            found.add(node)
    return found


def _shared(new: fx.Node, known: Mapping[str, fx.Node]) -> Iterator[str]:
    """Names of the nodes that existed before, where the walk back from the new value stops."""
    pending, seen = [new], {new}
    while pending:
        node = pending.pop()
        if node.name in known and node.op != "get_attr" and not is_parameter_only(node):
            yield node.name
            continue
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)


def _beside(old: fx.Node, shared: set[fx.Node]) -> Iterator[fx.Node]:
    """What the old side reads beside the shared values: the last nodes before it that do not come from them."""
    pending, seen = [old], {old}
    while pending:
        for source in pending.pop().all_input_nodes:
            if source in seen or source in shared:
                continue
            seen.add(source)
            if is_parameter_only(source) or _depends_on(source, shared):
                pending.append(source)
            else:
                yield source


def _before(nodes: set[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they are computed from."""
    pending, seen = [*nodes], {*nodes}
    while pending:
        fresh = [n for n in pending.pop().all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return seen


def _is_made_of(node: fx.Node, other: fx.Node) -> bool:
    """True when ``node`` is computed from ``other`` with no layer in between."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if current.target in _FREE_PRODUCERS or current < other:
            continue
        if other in current.all_input_nodes:
            return True
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return False


def _is_embedded(node: fx.Node, integers: set[fx.Node]) -> bool:
    """True for an embedding of one of the integers, and for what is made of one before any layer."""
    pending, seen = [node] if integers else [], {node}
    while pending:
        current = pending.pop()
        if current.target is _aten.embedding.default:
            if _depends_on(current, integers):
                return True
        elif current.target not in _FREE_PRODUCERS:
            fresh = [n for n in current.all_input_nodes if n not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return False


def _depends_on(node: fx.Node, others: set[fx.Node]) -> bool:
    """True when ``node`` is computed from one of the others."""
    if not others:
        return False
    first = min(others)
    pending, seen = list(node.all_input_nodes), set[fx.Node]()
    while pending:
        current = pending.pop()
        if current in others:
            return True
        # Nothing before the first of the others depends on them.
        if current in seen or current < first:
            continue
        seen.add(current)
        pending.extend(current.all_input_nodes)
    return False
