"""What an input means, as far as the graph and the example tell: features, token ids, a mask."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
_MOVES_INDICES = {
    _aten.view.default,
    _aten.reshape.default,
    _aten.unsqueeze.default,
    _aten.expand.default,
    _aten.slice.Tensor,
    _aten.clone.default,
    _aten.alias.default,
    _aten._to_copy.default,
}
# The score that models add for a hidden position: at most this, where it is not -inf.
_HIDDEN_SCORE = -1e4


class Kind(StrEnum):
    """Kinds of inputs, by the values that make sense for them."""

    FEATURES = "features"
    INDICES = "indices"
    MASK = "mask"
    ADDITIVE_MASK = "additive-mask"
    INTEGERS = "integers"


@dataclass(frozen=True, slots=True)
class Role:
    """An input's kind and, for integers, the half-open range of values that are safe to feed."""

    kind: Kind
    low: int = 0
    high: int = 2


def input_role(node: fx.Node, example: Tensor | None) -> Role:
    """Role of one input, from its placeholder and an example where there is one.

    An index is recognised by the embedding table that it reads, a mask by an example of zeros and ones alone, an
    additive mask by an example of zeros and very negative numbers. Other integers keep to the example's range.
    """
    value = recorded_tensor(node)
    if value is not None and (value.is_floating_point() or value.is_complex()):
        return Role(Kind.ADDITIVE_MASK) if _looks_additive(example) else Role(Kind.FEATURES)
    rows = _embedding_rows(node)
    if rows is not None:
        return Role(Kind.INDICES, 0, rows)
    if value is not None and value.dtype is torch.bool:
        return Role(Kind.MASK)
    if example is None or example.numel() == 0:
        return Role(Kind.INTEGERS, 0, 1)
    low, high = int(example.min()), int(example.max())
    return Role(Kind.MASK) if low >= 0 and high == 1 else Role(Kind.INTEGERS, low, high + 1)


def _looks_additive(example: Tensor | None) -> bool:
    if example is None or not example.is_floating_point() or example.numel() == 0:
        return False
    hidden = example <= _HIDDEN_SCORE
    return bool(hidden.any()) and bool((hidden | (example == 0)).all())


def _embedding_rows(node: fx.Node) -> int | None:
    """Rows of the smallest table that the node indexes."""
    found: list[int] = []
    for user in node.users:
        if user.target is _aten.embedding.default and user.args[1] is node:
            table = recorded_tensor(user.args[0])
            if table is not None:
                found.append(int(table.shape[0]))
        elif user.target in _MOVES_INDICES and user.args[0] is node:
            rows = _embedding_rows(user)
            if rows is not None:
                found.append(rows)
    return min(found, default=None)
