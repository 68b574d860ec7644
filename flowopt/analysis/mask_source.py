"""What a mask of attention is computed from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from flowopt.analysis.captured import Captured
from flowopt.analysis.input_roles import Kind, input_role
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
        constants: numbers beside integer positions, which a window may be as wide as.
        is_computed: by more operators than a mask takes.
    """

    mask: fx.Node
    inputs: tuple[fx.Node, ...]
    features: tuple[str, ...]
    tables: tuple[str, ...]
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


def _constants(nodes: Iterable[fx.Node]) -> tuple[int, ...]:
    """Whole numbers from 2 on in arithmetic and comparisons."""
    found: set[int] = set()
    for node in nodes:
        is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        value = recorded_tensor(node)
        if is_pointwise and value is not None and not value.is_floating_point():
            found |= {abs(number) for number in whole_numbers(node)}
    return tuple(sorted(c for c in found if c >= 2))
