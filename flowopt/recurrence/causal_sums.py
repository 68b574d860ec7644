"""Recognise sums of products over all tokens up to a query's own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from flowopt.analysis.rows import argument, axes_of, rank_of
from flowopt.ir.constants import needed_nodes, node_value
from flowopt.ir.metadata import sizes_as_text

_aten = torch.ops.aten
_PRODUCTS: Final = {_aten.matmul.default, _aten.bmm.default}
_SCALES: Final = {_aten.mul.Tensor: True, _aten.mul.Scalar: True, _aten.div.Tensor: False, _aten.div.Scalar: False}
_COPIES: Final = {
    *(_aten.clone.default, _aten.contiguous.default, _aten.alias.default, _aten.detach.default),
    *(_aten._to_copy.default, _aten.to.dtype),
}
_CHOICES: Final = {_aten.where.self, _aten.where.ScalarOther}
_FILLS: Final = {_aten.masked_fill.Scalar}
# A mask that is triangular at these lengths is so at all: it is made of comparisons and of sizes.
_LENGTHS: Final = (1, 2, 5, 8)


@dataclass(frozen=True, slots=True)
class CausalSum:
    """y_i = scale * sum over j <= i of (q_i . k_j) v_j.

    Attributes:
        query: (.., L, F).
        key: (.., F, L), with the tokens last.
        value: (.., L, M); None: ones, and the sum keeps its axis of size 1 or drops it.
        scale: all numbers that the scores are multiplied with.
        keeps: without a value: whether the summed axis stays.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node | None
    scale: float
    keeps: bool = True


def causal_sum(node: fx.Node, symbol: str, read: Callable[[str], Tensor]) -> CausalSum | None:
    """The sum that a node is, along the tokens of a free length; None when it is none.

    Args:
        node: a product of scores and values, or a sum of scores over the keys.
        symbol: of the length, as sizes show it.
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
    found = _scores(scores, symbol, read)
    if found is None:
        return None
    query, key, scale = found
    return CausalSum(query, key, value, scale, bool(argument(node, 2, False, "keepdim")))


def _scores(scores: Any, symbol: str, read: Callable[[str], Tensor]) -> tuple[fx.Node, fx.Node, float] | None:
    scale, is_masked = 1.0, False
    while isinstance(scores, fx.Node) and sizes_as_text(scores)[-2:] == (symbol, symbol):
        args, target = scores.args, scores.target
        if target in _PRODUCTS:
            query, key = args[:2]
            is_pair = isinstance(query, fx.Node) and isinstance(key, fx.Node)
            return (query, key, scale) if is_masked and is_pair else None  # type: ignore[return-value]  # both are nodes
        if target is _aten.tril.default:
            if argument(scores, 1, 0, "diagonal") != 0:
                return None
            is_masked, scores = True, args[0]
        elif target in _COPIES:
            scores = args[0]
        elif target in _SCALES and isinstance(args[1], (int, float)):
            scale, scores = scale * args[1] if _SCALES[target] else scale / args[1], args[0]
        else:
            scores = _unmasked(scores, symbol, read)
            is_masked = True
    return None


def _unmasked(node: fx.Node, symbol: str, read: Callable[[str], Tensor]) -> Any:
    """The scores whose upper triangle this operator sets to zero; None for others."""
    args = node.args
    if node.target is _aten.mul.Tensor:
        for scores, mask in (args[:2], args[1::-1]):
            if _is_triangle(mask, symbol, read, visible=1):
                return scores
    if node.target in _CHOICES and args[2] == 0 and _is_triangle(args[0], symbol, read, visible=1):
        return args[1]
    if node.target in _FILLS and args[2] == 0 and _is_triangle(args[1], symbol, read, visible=0):
        return args[0]
    return None


def _is_triangle(mask: Any, symbol: str, read: Callable[[str], Tensor], *, visible: int) -> bool:
    """True for a mask that is ``visible`` on and below the diagonal at every length, and 1 - that above."""
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
    return all(_shows(mask, lengths, length, read, visible) for length in _LENGTHS)


def _shows(mask: fx.Node, lengths: Iterable[fx.Node], length: int, read: Callable[[str], Tensor], visible: int) -> bool:
    value = node_value(mask, read, dict.fromkeys(lengths, length), raised=False)
    below = torch.ones(length, length, dtype=torch.bool).tril()
    return bool(torch.equal(value.to(torch.float64), (below == bool(visible)).to(torch.float64).expand_as(value)))
