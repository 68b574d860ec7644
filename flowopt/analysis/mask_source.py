"""What a mask of attention is computed from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from flowopt.analysis.captured import Captured
from flowopt.analysis.input_roles import Kind, input_role
from flowopt.ir.constants import constant_value, is_parameter_only
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
# Of their first argument only the sizes matter.
_SHAPE_ONLY = {
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.empty_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.new_empty.default,
}
# Not tagged as pointwise, though it is.
_BLOCKS = {_aten.floor_divide.default}
_SHIFTS = {
    getattr(getattr(_aten, name), overload)
    for name, overload in (
        ("__rshift__", "Scalar"),
        ("__lshift__", "Scalar"),
        ("bitwise_right_shift", "Tensor_Scalar"),
        ("bitwise_left_shift", "Tensor_Scalar"),
    )
}
# What an id is that a comparison tells apart from others, as a distance from the number that it is compared with.
_TOLD_APART = {"eq": 0, "ne": 0, "gt": 0, "ge": -1, "lt": 0, "le": 1}
# A mask is computed in a few dozen operators; what takes more is computed by the model.
_MOST_NODES = 400
# The ends of slices and the lowest numbers of dtypes are no ids.
_BEYOND_ANY_ID = 2**31


@dataclass(frozen=True, slots=True)
class MaskSource:
    """What a mask is computed from.

    Attributes:
        mask: the node.
        inputs: placeholders on whose values it depends; those whose sizes alone matter are not among them.
        features: those of them whose values are no masks, ids or other integers.
        tables: stored tensors of floating numbers that it reads.
        lengths: sizes, from 2 on, of the axes of all stored tensors that it reads.
        constants: numbers beside integer positions, which a window may be as wide as.
        is_computed: by more operators than a mask takes.
    """

    mask: fx.Node
    inputs: tuple[fx.Node, ...]
    features: tuple[str, ...]
    tables: tuple[str, ...]
    lengths: tuple[int, ...]
    constants: tuple[int, ...]
    is_computed: bool


def mask_source(program: Captured, mask: fx.Node) -> MaskSource:
    """What a mask, or anything that is added to scores, is computed from."""
    needed = sorted(value_ancestors(mask))
    placeholders = [n for n in needed if n.op == "placeholder"]
    roles = {n: input_role(n, program.example.get(n.name)) for n in placeholders}
    is_computed = len(needed) > _MOST_NODES
    stored = [(n, recorded_tensor(n)) for n in needed if n.op == "get_attr"]
    return MaskSource(
        mask=mask,
        inputs=tuple(placeholders),
        features=tuple(n.name for n in placeholders if roles[n].kind is Kind.FEATURES),
        tables=tuple(str(n.target) for n, t in stored if t is not None and t.is_floating_point() and t.dim() > 0),
        lengths=tuple(sorted({int(size) for _, t in stored if t is not None for size in t.shape if size >= 2})),
        constants=() if is_computed else _constants(n for n in needed if not depends_on(n, placeholders)),
        is_computed=is_computed,
    )


def value_ancestors(mask: fx.Node) -> set[fx.Node]:
    """What the mask's value is computed from; values of which sizes alone matter are not among it."""
    needed: set[fx.Node] = set()
    pending = [mask]
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        if not is_shape_only(node):
            pending.extend(node.all_input_nodes)
    return needed


def is_shape_only(node: fx.Node) -> bool:
    """A size, or a tensor of one number that takes sizes alone from another."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt)) or node.target in _SHAPE_ONLY


def depends_on(node: fx.Node, placeholders: Sequence[fx.Node]) -> bool:
    """Whether a node's value is computed from that of one of some placeholders."""
    return not value_ancestors(node).isdisjoint(placeholders)


def whole_numbers(node: fx.Node) -> set[int]:
    """Those among the operator's arguments."""
    numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    return {int(a) for a in numbers if abs(a) < _BEYOND_ANY_ID and a == int(a)}


def compared_numbers(program: Captured, node: fx.Node, placeholder: fx.Node) -> set[int]:
    """The whole numbers that a comparison tells apart from others; none where it compares no value of the placeholder.

    A cast to bool asks about zero.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or not depends_on(node, (placeholder,)):
        return set()
    if node.target is _aten._to_copy.default and node.kwargs.get("dtype") is torch.bool:
        return {0}
    name = node.target.overloadpacket.__name__
    if name not in _TOLD_APART:
        return set()
    numbers = whole_numbers(node)
    for other in node.all_input_nodes:
        value = recorded_tensor(other)
        if value is not None and value.dim() == 0 and is_parameter_only(other):
            number = float(constant_value(other, program.read, raised=False))
            numbers |= {int(number)} if number.is_integer() and abs(number) < _BEYOND_ANY_ID else set()
    return {number + _TOLD_APART[name] for number in numbers}


def compares_itself(node: fx.Node, placeholder: fx.Node) -> bool:
    """Whether an operator compares values of a placeholder with each other."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    sources = node.all_input_nodes
    is_comparison = node.target.overloadpacket.__name__ in _TOLD_APART
    return is_comparison and len(sources) == 2 and all(depends_on(source, (placeholder,)) for source in sources)


def _constants(nodes: Iterable[fx.Node]) -> tuple[int, ...]:
    """Whole numbers from 2 on in arithmetic and comparisons; of a shift, the power of two."""
    found: set[int] = set()
    for node in nodes:
        is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        value = recorded_tensor(node)
        is_pointwise = is_pointwise or node.target in _BLOCKS
        if is_pointwise and value is not None and not value.is_floating_point():
            numbers = {abs(number) for number in whole_numbers(node)}
            found |= {2**number for number in numbers if number < 31} if node.target in _SHIFTS else numbers
    return tuple(sorted(c for c in found if c >= 2))
