"""Large stored tensors in float64, a part at a time.

The float64 copy of a large embedding table or output layer would cost twice its bytes. A lookup needs the rows that
it reads, and a product can be made column by column, so neither is ever raised whole.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.float64 import RAISED_DTYPE, raised_tensor

_aten = torch.ops.aten
# A part is large enough for the product's own cost to dominate, and small beside a model that needs parts.
PART_BYTES = 1 << 26


def raised_unless_streamed(tensor: Tensor, stored: fx.Node, reader: fx.Node) -> Tensor:
    """The tensor in float64; as it is stored when it is large and ``reader`` takes it as a weight, in parts."""
    return tensor if _is_large(tensor) and _is_taken_in_parts(stored, reader) else raised_tensor(tensor)


def is_streamed(node: fx.Node, args: Sequence[Any]) -> bool:
    """True when the node's weight came unraised."""
    found = None if node.kwargs else _CALLS.get(node.target)
    weight = args[found[0]] if found is not None else None
    return isinstance(weight, Tensor) and _is_large(weight) and weight.dtype in RAISED_DTYPE


def streamed_call(node: fx.Node, args: Sequence[Any]) -> Tensor:
    """What the node gives in float64 with its weight raised in parts."""
    return _CALLS[node.target][1](*args)


def _is_taken_in_parts(stored: fx.Node, reader: fx.Node) -> bool:
    """Whether the reader takes it as a weight, or transposes it for those that do."""
    if reader.target in _TRANSPOSED:
        return bool(reader.users) and all(_is_taken_in_parts(reader, user) for user in reader.users)
    found = None if reader.kwargs else _CALLS.get(reader.target)
    return found is not None and [i for i, a in enumerate(reader.args) if a is stored] == [found[0]]


def _is_large(tensor: Tensor) -> bool:
    """A vector has no columns to make a product of one by one."""
    return tensor.dim() > 1 and tensor.nbytes > PART_BYTES


def _embedding(weight: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    return raised_tensor(_aten.embedding.default(weight, indices, *rest))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pieces = [_aten.linear.default(x, raised_tensor(weight[part])) for part in _parts(weight, 0)]
    product = torch.cat(pieces, -1)
    return product if bias is None else product.add_(bias)


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([torch.matmul(x, raised_tensor(weight[..., part])) for part in _parts(weight, -1)], -1)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _matmul(x, weight).add_(bias)


def _parts(weight: Tensor, axis: int) -> Iterator[slice]:
    size = weight.shape[axis]
    step = max(1, size * PART_BYTES // weight.nbytes)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


_TRANSPOSED = {_aten.t.default, _aten.transpose.int, _aten.permute.default}
# Operator to the position of its weight, and how to call it in parts.
_CALLS: dict[Any, tuple[int, Callable[..., Tensor]]] = {
    _aten.embedding.default: (0, _embedding),
    _aten.linear.default: (1, _linear),
    _aten.mm.default: (1, _matmul),
    _aten.bmm.default: (1, _matmul),
    _aten.matmul.default: (1, _matmul),
    _aten.addmm.default: (2, _addmm),
}
