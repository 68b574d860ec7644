"""Decisions: operators that give something else when a float lies on the other side of a boundary.

An argmax between two nearly equal scores, a floor of 2.9999999 or a comparison with a computed threshold may fall
either way under rounding that is no worse than the original's. In float64 the margin to the boundary is known. Where
it is smaller than what rounding may do, the decision is *undecided*: the oracle runs again with it taken the other
way, and output elements that change with it cannot accuse anybody. They are counted, never silently passed.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flowopt.ir.evaluate import Value
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.verification.decisions import flips, flips_of_order
from flowopt.verification.decisions.flips import Flip, Seen

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Decision:
    """A node that decides by a float, and the nodes whose values it reads."""

    node: fx.Node
    deciding: tuple[fx.Node, ...]


def decisions(program: Program) -> tuple[Decision, ...]:
    """Every deciding node of a program that reads floats, in order."""
    return tuple(
        Decision(node, tuple(node.all_input_nodes))
        for node in program.graph.nodes
        if node.op == "call_function"
        and node.target in _FLIPS
        and any(n.op != "get_attr" and _is_float(n) for n in node.all_input_nodes)
        and _turns_discrete(node)
    )


def flipped(decision: Decision, seen: Mapping[str, Seen], result: Value) -> tuple[Value, int]:
    """The decision taken the other way where it is undecided, and how many elements that are.

    Args:
        decision: what decides.
        seen: of every value that it reads, by the node's name.
        result: what the node gives in the oracle.
    """
    return _FLIPS[decision.node.target](decision.node, seen, result)


def _is_float(node: fx.Node) -> bool:
    value = recorded_tensor(node)
    return value is not None and value.is_floating_point()


def _turns_discrete(node: fx.Node) -> bool:
    """False for a cast between floats, and for a sort or a maximum of which only the values are read."""
    if node.target in _PAIRS:
        return any(user.target is not operator.getitem or user.args[1] == 1 for user in node.users)
    if node.target is not _aten._to_copy.default:
        return True
    value = recorded_tensor(node)
    return value is not None and not value.is_floating_point() and not value.is_complex()


_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_POOLS = (
    _aten.max_pool1d_with_indices.default,
    _aten.max_pool2d_with_indices.default,
    _aten.max_pool3d_with_indices.default,
    _aten.adaptive_max_pool1d.default,
    _aten.adaptive_max_pool2d.default,
    _aten.adaptive_max_pool3d.default,
)
_ORDERED_PAIRS = (_aten.topk.default, _aten.sort.default, _aten.sort.stable)
_PAIRS = {_aten.max.dim, _aten.min.dim, *_ORDERED_PAIRS, *_POOLS}
_ROUNDINGS = ("floor", "ceil", "trunc", "fix", "frac", "round")
_SIGNS = (
    _aten.sign.default,
    _aten.sgn.default,
    _aten.signbit.default,
    _aten.heaviside.default,
    _aten.copysign.Tensor,
    _aten.logical_not.default,
)
_REMAINDERS = (
    _aten.remainder.Scalar,
    _aten.remainder.Tensor,
    _aten.remainder.Scalar_Tensor,
    _aten.fmod.Scalar,
    _aten.fmod.Tensor,
)
_QUOTIENTS = (_aten.div.Tensor_mode, _aten.div.Scalar_mode, _aten.floor_divide.default, _aten.floor_divide.Scalar)
_FLIPS: dict[Any, Flip] = {
    **{getattr(getattr(_aten, n), kind): flips.compared for n in _COMPARISONS for kind in ("Tensor", "Scalar")},
    **{getattr(_aten, n).default: flips.rounded for n in _ROUNDINGS},
    _aten.round.decimals: flips.rounded_to_decimals,
    **dict.fromkeys(_QUOTIENTS, flips.divided),
    **dict.fromkeys(_REMAINDERS, flips.remaindered),
    _aten._to_copy.default: flips.cast,
    **dict.fromkeys(_SIGNS, flips.signed),
    _aten.threshold.default: flips.thresholded,
    **dict.fromkeys((_aten.argmax.default, _aten.argmin.default, _aten.max.dim, _aten.min.dim), flips_of_order.best),
    **dict.fromkeys((*_ORDERED_PAIRS, _aten.argsort.default, _aten.argsort.stable), flips_of_order.ordered),
    **dict.fromkeys((_aten.bucketize.Tensor, _aten.searchsorted.Tensor), flips_of_order.bucketed),
    **dict.fromkeys(_POOLS, flips_of_order.pooled),
}
