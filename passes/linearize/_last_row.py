"""The last row of a mask, computed without the rows before it."""

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.rewrite import Edit

_aten = torch.ops.aten
# They lack the tag of elementwise operators, as choices between a tensor and a number do.
_LOGIC = {_aten.__and__.Tensor, _aten.__or__.Tensor, _aten.__xor__.Tensor}
_CHOICES = {_aten.where.self, _aten.where.ScalarSelf, _aten.where.ScalarOther, _aten.where.Scalar}
_SAME = {
    _aten._to_copy.default,
    _aten.clone.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten.lift_fresh_copy.default,
    _aten.masked_fill.Scalar,
    _aten.masked_fill.Tensor,
}
_END = 2**63 - 1


def last_row(edit: Edit, mask: fx.Node) -> fx.Node:
    """The node of mask[..., -1:, :], (.., 1, S): its elementwise operators again, on last rows.

    What is linear in the length would otherwise begin with a matrix of all pairs. An operator that is none of these is
    cut itself.
    """
    shape = sizes_as_text(mask)
    if len(shape) < 2 or shape[-2] == "1":
        return mask
    if mask.target is _aten.expand.default:
        return _expanded(edit, mask)
    if mask.target is _aten.unsqueeze.default:
        return _unsqueezed(edit, mask, len(shape))
    if _is_elementwise(mask):
        sources = mask.all_input_nodes
        if all(recorded_tensor(source) is not None for source in sources):
            return edit.repeat(mask, {source: last_row(edit, source) for source in sources})
    return _cut(edit, mask, len(shape) - 2)


def _is_elementwise(node: fx.Node) -> bool:
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    return node.target in _LOGIC | _CHOICES | _SAME or torch.Tag.pointwise in tags


def _cut(edit: Edit, node: fx.Node, axis: int) -> fx.Node:
    return edit.call(_aten.slice.Tensor, node, axis, -1, _END)


def _expanded(edit: Edit, node: fx.Node) -> fx.Node:
    source, sizes = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(sizes, (list, tuple))
    return edit.call(_aten.expand.default, last_row(edit, source), [*sizes[:-2], 1, sizes[-1]])


def _unsqueezed(edit: Edit, node: fx.Node, rank: int) -> fx.Node:
    source, axis = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(axis, int)
    added = axis % rank
    # A new last axis makes rows of what was the last axis; a new axis in the place of the rows is one row.
    shorter = _cut(edit, source, rank - 2) if added == rank - 1 else last_row(edit, source)
    return edit.call(_aten.unsqueeze.default, shorter, added)
