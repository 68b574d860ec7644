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
    _aten.select.int,
    _aten.clone.default,
    _aten.alias.default,
    _aten._to_copy.default,
}
_COMPARISONS = {getattr(_aten, name).Scalar for name in ("eq", "ne", "gt", "ge", "lt", "le")}
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
    """An input's kind and, for integers, the half-open range of values that are safe to feed.

    ``padding`` is the id that an embedding declares to stand for nothing. ``is_index``: of other integers, that a
    tensor is indexed by them all the same.
    """

    kind: Kind
    low: int = 0
    high: int = 2
    padding: int | None = None
    is_index: bool = False


def input_role(node: fx.Node, example: Tensor | None) -> Role:
    """Role of one input, from its placeholder and an example where there is one.

    An index is recognised by the embedding table that it reads, a mask by an example of zeros and ones alone, an
    additive mask by an example of zeros and very negative numbers. Other integers keep to the example's range.
    Archives come without examples: there an index reads any tensor, a mask is asked whether it is zero, and other
    integers are zeros and ones.
    """
    value = recorded_tensor(node)
    if value is not None and (value.is_floating_point() or value.is_complex()):
        return Role(Kind.ADDITIVE_MASK) if _looks_additive(example) else Role(Kind.FEATURES)
    if value is not None and value.dtype is torch.bool:
        return Role(Kind.MASK)
    is_unknown = example is None or example.numel() == 0
    rows = _table_rows(node, embeddings_only=not is_unknown)
    if rows is not None:
        return Role(Kind.INDICES, 0, rows, _padding(node))
    if example is None or is_unknown:
        return Role(Kind.MASK) if _is_read_as_mask(node) else Role(Kind.INTEGERS, 0, 2)
    low, high = int(example.min()), int(example.max())
    if low >= 0 and high == 1:
        return Role(Kind.MASK)
    is_index = _table_rows(node, embeddings_only=False) is not None
    return Role(Kind.INTEGERS, low, high + 1, is_index=is_index)


def _is_read_as_mask(node: fx.Node) -> bool:
    """Whether something asks if the input is zero: a cast to bool, a comparison with a constant, or 1 - x in floats."""
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.target in _COMPARISONS and user.args[1] in (0, 1):
            return True
        if user.target in (_aten.sub.Tensor, _aten.rsub.Scalar) and 1.0 in user.args[:2]:
            return True
        if user.target is _aten._to_copy.default and user.kwargs.get("dtype") is torch.bool:
            return True
        pending += user.users if user.target in _MOVES_INDICES else ()
    return False


def _looks_additive(example: Tensor | None) -> bool:
    if example is None or not example.is_floating_point() or example.numel() == 0:
        return False
    hidden = example <= _HIDDEN_SCORE
    return bool(hidden.any()) and bool((hidden | (example == 0)).all())


def _table_rows(node: fx.Node, *, embeddings_only: bool) -> int | None:
    """Rows of the smallest table that the node indexes; None where it indexes none. One of free size counts as 1.

    Args:
        node: an integer tensor.
        embeddings_only: other tensors do not count, because an example says more about their indices.
    """
    found: list[int | None] = []
    for user in node.users:
        table, axis = _indexed(user, node)
        if table is not None and (user.target is _aten.embedding.default or not embeddings_only):
            size: int | torch.SymInt = table.shape[axis]
            found.append(size if isinstance(size, int) else 1)
        elif user.target in _MOVES_INDICES and user.args[0] is node:
            found.append(_table_rows(user, embeddings_only=embeddings_only))
    return min((rows for rows in found if rows is not None), default=None)


def _padding(node: fx.Node) -> int | None:
    """``padding_idx`` of the first embedding that declares one and reads the node."""
    for user in node.users:
        if user.target is _aten.embedding.default and user.args[1] is node:
            index = user.args[2] if len(user.args) > 2 else -1
            if isinstance(index, int) and index >= 0:
                return index
        elif user.target in _MOVES_INDICES and user.args[0] is node:
            found = _padding(user)
            if found is not None:
                return found
    return None


def _indexed(user: fx.Node, index: fx.Node) -> tuple[Tensor | None, int]:
    """The tensor that ``user`` indexes with ``index``, and along which axis; None where it does not."""
    arguments = user.args
    if user.target is _aten.embedding.default and arguments[1] is index:
        return recorded_tensor(arguments[0]), 0
    if user.target in (_aten.gather.default, _aten.index_select.default) and arguments[2] is index:
        axis = arguments[1]
        return recorded_tensor(arguments[0]), axis if isinstance(axis, int) else 0
    if user.target is _aten.index.Tensor and isinstance(arguments[1], (list, tuple)) and index in arguments[1]:
        return recorded_tensor(arguments[0]), arguments[1].index(index)
    return None, 0
