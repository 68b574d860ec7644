"""The region of a claim: both sides, and the values where they start.

The new side starts at nodes that existed before the pass: the *shared* values. They are not free to be anything:
one may be computed from another (two equal subexpressions, of which one replaces the other), or be what a ReLU gave.
So the region is widened upwards, on the original's side, to *roots* that can hold any number, such as the output of a
linear layer, and everything in between is computed.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.analysis.ancestors import Ancestors
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
        self._ancestors = Ancestors(program.graph)
        self._activation_bits = self._ancestors.bits(self._activations)
        self._placeholders = self._ancestors.bits(n for n in self.nodes.values() if n.op == "placeholder")
        self._restricted: dict[fx.Node, bool] = {}
        self._embedded: dict[int, int] = {0: 0}

    def of(self, old: str, new: fx.Node) -> Region:
        """Region of the claim that ``new``, of a changed copy of the graph, equals the node called ``old``."""
        ancestors = self._ancestors
        shared = {self.nodes[name] for name in shared_names(new, self.nodes)}
        start = self.nodes[old]
        first = shared if start in shared else shared | set(self._beside(start, ancestors.bits(shared)))
        roots = ancestors.bits(first)
        common = ancestors.with_own(start) & (ancestors.of_any(shared) | ancestors.bits(shared))
        embedded = self._embedded_from(ancestors.bits(shared) & ~self._activation_bits)
        while (bound := self._bound(roots, common, embedded)) is not None:
            inputs = (n for n in bound.all_input_nodes if not self._is_stored(n))
            roots = (roots & ~ancestors.bit(bound)) | ancestors.bits(inputs)
        found = sorted(ancestors.last_first(roots), key=lambda n: n.name)
        free = frozenset(n for n in found if n in self._activations and recorded_tensor(n) is not None)
        return Region(start, frozenset(n.name for n in shared), tuple(found), free)

    def is_activation(self, node: fx.Node) -> bool:
        """True when the node depends on features or embeddings, not on integers alone."""
        return node in self._activations

    def _bound(self, roots: int, common: int, embedded: int) -> fx.Node | None:
        """The last root that is not free.

        It depends on another one, or its operator restricts its values, or one side alone reads it: then it may equal
        what the other reads in its place, such as a second embedding of the same ids. So may an embedding of integers
        that the new side reads.
        """
        # Sizes and masks keep what the model computes, whatever an activation behind them is.
        binding = roots & self._activation_bits
        for node in self._ancestors.last_first(roots):
            if node.op == "placeholder":
                continue
            bit = self._ancestors.bit(node)
            is_tied = bool(bit & embedded) or (not bit & common and _is_floating(node))
            if is_tied or self._ancestors.of(node) & binding or self._is_restricted(node):
                return node
        return None

    def _beside(self, old: fx.Node, shared: int) -> Iterator[fx.Node]:
        """What the old side reads beside the shared values: the last nodes before it that do not come from them."""
        pending, seen = [old], {old}
        while pending:
            for source in pending.pop().all_input_nodes:
                if source in seen or self._ancestors.bit(source) & shared:
                    continue
                seen.add(source)
                if self._ancestors.of(source) & shared or self._is_stored(source):
                    pending.append(source)
                else:
                    yield source

    def _is_stored(self, node: fx.Node) -> bool:
        return not self._ancestors.with_own(node) & self._placeholders and is_parameter_only(node)

    def _embedded_from(self, integers: int) -> int:
        """The embeddings of some integers, and what is made of one before any layer."""
        if integers not in self._embedded:
            found = 0
            for node in self.nodes.values():
                if node.target is _aten.embedding.default:
                    is_embedded = self._ancestors.of(node) & integers
                else:
                    is_embedded = node.target not in _FREE_PRODUCERS and found & self._ancestors.bits(
                        node.all_input_nodes
                    )
                found |= self._ancestors.bit(node) if is_embedded else 0
            self._embedded[integers] = found
        return self._embedded[integers]

    def _is_restricted(self, node: fx.Node) -> bool:
        if node not in self._restricted:
            self._restricted[node] = self._has_restricted_values(node)
        return self._restricted[node]

    def _has_restricted_values(self, node: fx.Node) -> bool:
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
        are_known = all(side in self._activations or self._is_stored(side) for side in sides)
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


def shared_names(new: fx.Node, known: Container[str]) -> Iterator[str]:
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


def _is_floating(node: fx.Node) -> bool:
    value = recorded_tensor(node)
    return value is not None and value.is_floating_point()


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
