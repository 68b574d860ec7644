"""Recognise sums of products over all tokens up to a query's own."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from flowopt.analysis.rows import argument, axes_of, rank_of
from flowopt.ir.constants import needed_nodes, node_value
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.program.program import Dim

_aten = torch.ops.aten
_PRODUCTS: Final = {_aten.matmul.default, _aten.bmm.default}
_SCALES: Final = {_aten.mul.Tensor: True, _aten.mul.Scalar: True, _aten.div.Tensor: False, _aten.div.Scalar: False}
_COPIES: Final = {
    *(_aten.clone.default, _aten.contiguous.default, _aten.alias.default, _aten.detach.default),
    *(_aten._to_copy.default, _aten.to.dtype),
}
_CHOICES: Final = {_aten.where.self, _aten.where.ScalarOther}
_FILLS: Final = {_aten.masked_fill.Scalar}
# A mask that is triangular at these lengths and at the longest is so at all: it is made of comparisons and of sizes.
_LENGTHS: Final = (1, 2, 5, 8)
# No mask is made for more tokens than that. A window that is wider needs a number that says so, or a stored tensor.
_LONGEST: Final = 4096
_TO_THE_END: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CausalSum:
    """y_i = scale * sum over j <= i of (q_i . k_j) v_j.

    Attributes:
        query: (.., L, F).
        key: (.., F, L), with the tokens last.
        value: (.., L, M); None: ones, and the sum keeps its axis of size 1 or drops it.
        scale: all numbers that the scores are multiplied with.
        dtype: the widest of scores and sum.
        keeps: without a value: whether the summed axis stays.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node | None
    scale: float
    dtype: torch.dtype
    keeps: bool = True


def causal_sum(node: fx.Node, dim: Dim, read: Callable[[str], Tensor]) -> CausalSum | None:
    """The sum that a node is, along the tokens of a free length; None when it is none.

    Args:
        node: a product of scores and values, or a sum of scores over the keys.
        dim: the tokens.
        read: the stored tensor of a name.
    """
    value: Any = None
    if node.target in _PRODUCTS:
        scores, value = node.args[:2]
    elif node.target is _aten.sum.dim_IntList and axes_of(node.args[1], rank_of(node.args[0])) == [
        rank_of(node.args[0]) - 1
    ]:
        scores = node.args[0]
    else:
        return None
    found = _scores(scores, dim, read)
    own = recorded_tensor(node)
    # A sum of integers is theirs, and a cast to them inside would round.
    if found is None or own is None or not own.is_floating_point():
        return None
    query, key, scale, dtype = found
    keeps = bool(argument(node, 2, False, "keepdim"))
    return CausalSum(query, key, value, scale, torch.promote_types(dtype, own.dtype), keeps)


def _scores(scores: Any, dim: Dim, read: Callable[[str], Tensor]) -> tuple[fx.Node, fx.Node, float, torch.dtype] | None:
    """Query, key, scale and the widest dtype on the way from their product to the sum."""
    scale, is_masked = 1.0, False
    dtype: torch.dtype | None = None
    while isinstance(scores, fx.Node) and sizes_as_text(scores)[-2:] == (dim.symbol, dim.symbol):
        args, target = scores.args, scores.target
        own = recorded_tensor(scores)
        if own is None or not own.is_floating_point():
            return None
        dtype = own.dtype if dtype is None else torch.promote_types(dtype, own.dtype)
        if target in _PRODUCTS:
            query, key = args[:2]
            if not is_masked or not isinstance(query, fx.Node) or not isinstance(key, fx.Node):
                return None
            return query, key, scale, dtype
        if target is _aten.tril.default:
            if argument(scores, 1, 0, "diagonal") != 0:
                return None
            is_masked, scores = True, args[0]
        elif target in _COPIES:
            scores = args[0]
        elif target in _SCALES and isinstance(args[1], (int, float)):
            scale, scores = scale * args[1] if _SCALES[target] else scale / args[1], args[0]
        else:
            scores = _unmasked(scores, dim, read)
            is_masked = True
    return None


def _unmasked(node: fx.Node, dim: Dim, read: Callable[[str], Tensor]) -> Any:
    """The scores whose upper triangle this operator sets to zero; None for others."""
    args = node.args
    if node.target is _aten.mul.Tensor:
        for scores, mask in (args[:2], args[1::-1]):
            if _is_triangle(mask, dim, read, visible=1):
                return scores
    if node.target in _CHOICES and args[2] == 0 and _is_triangle(args[0], dim, read, visible=1):
        return args[1]
    if node.target in _FILLS and args[2] == 0 and _is_triangle(args[1], dim, read, visible=0):
        return args[0]
    return None


def _is_triangle(mask: Any, dim: Dim, read: Callable[[str], Tensor], *, visible: int) -> bool:
    """True for a mask that is ``visible`` on and below the diagonal at every length, and 1 - that above."""
    symbol = dim.symbol
    if not isinstance(mask, fx.Node) or sizes_as_text(mask)[-2:] != (symbol, symbol):
        return False
    needed = needed_nodes([mask], ())
    sizes = [n for n in needed if isinstance(n.meta.get("val"), torch.SymInt)]
    if any(str(n.meta["val"]) != symbol and n.op != "call_function" for n in sizes):
        return False
    lengths = [n for n in sizes if str(n.meta["val"]) == symbol]
    inner = needed_nodes([mask], set(lengths))
    if any(n.op == "placeholder" for n in inner) or not lengths:
        return False
    longest = _LONGEST if dim.maximum is None else dim.maximum
    if dim.maximum is None or longest > _LONGEST:
        if any(n.op == "get_attr" for n in inner) or _reach(inner) > _LONGEST:
            return False
        longest = _LONGEST
    tried = sorted({max(dim.minimum, min(length, longest)) for length in (*_LENGTHS, longest)})
    return all(_shows(mask, lengths, length, read, visible) for length in tried)


def _reach(nodes: Iterable[fx.Node]) -> float:
    """How far apart tokens may be that the numbers of a mask tell from nearer ones: no farther than their product."""
    numbers: list[float] = []
    for node in nodes:
        pending: list[Any] = [*node.args, *node.kwargs.values()]
        while pending:
            one = pending.pop()
            if isinstance(one, (list, tuple)):
                pending.extend(one)
            elif isinstance(one, (int, float)) and one and one != _TO_THE_END:
                numbers.append(max(abs(one), 1 / abs(one)))
    return math.prod(numbers)


def _shows(mask: fx.Node, lengths: Iterable[fx.Node], length: int, read: Callable[[str], Tensor], visible: int) -> bool:
    value = node_value(mask, read, dict.fromkeys(lengths, length), raised=False)
    if not isinstance(value, Tensor) or value.shape[-2:] != (length, length):
        return False
    below = torch.ones(length, length, dtype=torch.bool).tril()
    wanted = below if visible else ~below
    return bool((value == wanted.to(value.dtype)).all())
