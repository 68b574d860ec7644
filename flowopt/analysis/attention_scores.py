"""Follow the scores of written attention from their product to the softmax."""

import math
import operator
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.analysis.feature_layout import MOVES, Layout, moved_layout
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size

_aten = torch.ops.aten
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default}
_SHIFTS = {_aten.add.Tensor, _aten.add.Scalar, _aten.sub.Tensor, _aten.sub.Scalar}
_SCALES = {_aten.mul.Tensor, _aten.mul.Scalar}
_QUOTIENTS = {_aten.div.Tensor, _aten.div.Scalar}
_CHOICES = {_aten.where.self, _aten.where.ScalarSelf, _aten.where.ScalarOther}
_FILLS = {_aten.masked_fill.Scalar, _aten.masked_fill.Tensor}
# Operators from a product to its softmax; written attention has fewer than ten.
_MAX_NODES = 40


@dataclass(frozen=True, slots=True)
class Rows:
    """Scores to which the same number may be added in all of a row, and a softmax would not change.

    Attributes:
        keys: where the keys are, along which rows go.
        is_filled: some scores are a low, but finite number, which hides them.
    """

    keys: Layout
    is_filled: bool = False


def scores_of(softmax: fx.Node) -> tuple[fx.Node, ...]:
    """Products that reach a softmax through moves and elementwise operators, and those operators, in graph order.

    Empty when there is no product of two computed values.
    """
    seen: set[fx.Node] = set()
    pending = deque(softmax.all_input_nodes)
    while pending and len(seen) < _MAX_NODES:
        node = pending.popleft()
        is_inner = node.target in MOVES or node.target is operator.getitem or _is_elementwise(node)
        if node not in seen and (is_inner or is_product(node)):
            seen.add(node)
            pending.extend([] if is_product(node) else node.all_input_nodes)
    return tuple(sorted(seen)) if any(map(is_product, seen)) else ()


def is_product(node: fx.Node) -> bool:
    """True for a matrix product of two computed values."""
    return node.target in _PRODUCTS and not any(map(is_parameter_only, node.all_input_nodes))


def shifted_rows(node: fx.Node, source: fx.Node, rows: Rows, constant: Callable[[fx.Node], Tensor]) -> Rows | None:
    """Rows of ``node``, which reads rows from ``source`` alone; None when it may turn a shift into something else.

    Moves, scales that all keys have in common, and sums leave a shift one. So does hiding some scores: with minus
    infinity, or with a number so low that no other score comes near it.

    Args:
        node: the operator.
        source: what it reads.
        rows: those of ``source``.
        constant: value of a parameter-only node.
    """
    moved = moved_layout(node, source, rows.keys)
    if moved is not None:
        return Rows(moved, rows.is_filled)
    is_read_once = sum(a is source for a in node.args) == 1
    if not is_read_once or sizes_as_text(node) != sizes_as_text(source):
        return None
    if node.target in _SHIFTS:
        return rows
    if _is_scale(node, source, rows.keys):
        # Scaled, a low number is perhaps low no more.
        return None if rows.is_filled else rows
    fill = _fill(node, source, constant)
    return None if fill is None else Rows(rows.keys, rows.is_filled or fill != -math.inf)


def _is_elementwise(node: fx.Node) -> bool:
    # Choices between a tensor and a number lack the tag.
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    return node.target in _CHOICES or torch.Tag.pointwise in tags


def _is_scale(node: fx.Node, source: fx.Node, keys: Layout) -> bool:
    """True for a product or a quotient whose other operand is the same for all keys."""
    is_quotient = node.target in _QUOTIENTS and node.args[0] is source
    if len(node.args) != 2 or not (is_quotient or node.target in _SCALES):
        return False
    (other,) = (a for a in node.args if a is not source)
    found = recorded_tensor(other)
    if found is None:
        return True
    behind = found.dim() - len(keys.axes)
    return all(axis + behind < 0 or static_size(other, axis + behind) == 1 for axis in keys.featured_axes())


def _fill(node: fx.Node, source: fx.Node, constant: Callable[[fx.Node], Tensor]) -> float | None:
    """The number that hides scores, which is in the lower half of the negative ones; None for other operators."""
    scores = recorded_tensor(node)
    if scores is None or not scores.is_floating_point():
        return None
    if node.target in _CHOICES and node.args[0] is not source:
        fill = node.args[2 if node.args[1] is source else 1]
    elif node.target in _FILLS and node.args[0] is source:
        fill = node.args[2]
    else:
        return None
    if isinstance(fill, fx.Node):
        fill = float(constant(fill).max()) if is_parameter_only(fill) else math.nan
    is_low = isinstance(fill, (int, float)) and fill <= torch.finfo(scores.dtype).min / 2
    return float(fill) if is_low else None  # type: ignore[arg-type]  # a low fill is a number
