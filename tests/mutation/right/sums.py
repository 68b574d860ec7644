"""Sums and means in another order. Every one gives NaN and infinities where the original does."""

from typing import Any, Final

from torch import fx

from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.rewrite import Edit, Exactness
from tests.mutation.right.kind import Kind, built
from tests.mutation.right.term import Term, arguments, aten, call, is_call, is_float, raw_arguments

_ADD, _SUB = aten.add.Tensor, aten.sub.Tensor
_MEAN = aten.mean.dim


def _reassociated_sum(edit: Edit, node: fx.Node) -> Term:
    """(a + b) + c = a + (b + c)."""
    outer = arguments(edit, node)
    inner = arguments(edit, outer["self"].node)
    return inner["self"] + (inner["other"] + outer["other"])


def _adds_a_sum(node: fx.Node) -> bool:
    inner, rest = node.args[:2]
    both = (inner, rest, *inner.args) if is_call(inner, _ADD) else (inner, None)
    return not node.kwargs and all(isinstance(n, fx.Node) and is_float(n) for n in both)


def _negated_difference(edit: Edit, node: fx.Node) -> Term:
    """a - b = a + (-b), and a + b = a - (-b)."""
    a = arguments(edit, node)
    negative = -a["other"]
    left: Term = a["self"]
    return left - negative if node.target is _ADD else left + negative


def _stacked_sum(edit: Edit, node: fx.Node) -> Term:
    """a + b = sum of (a, b) over a new axis."""
    a = arguments(edit, node)
    return call(edit, aten.stack.default, [a["self"], a["other"]], 0).op(aten.sum.dim_IntList, [0])


def _has_equal_shapes(node: fx.Node) -> bool:
    left, right = (recorded_tensor(a) for a in node.args[:2])
    return (
        not node.kwargs
        and left is not None
        and right is not None
        and left.dtype == right.dtype
        and left.is_floating_point()
        and [str(s) for s in left.shape] == [str(s) for s in right.shape]
    )


def _has_two_tensors(node: fx.Node) -> bool:
    return not node.kwargs and all(is_float(a) for a in node.args[:2])


def _mean_as_product(edit: Edit, node: fx.Node) -> Term:
    """mean(x) = sum(x) * (1 / n)."""
    a = arguments(edit, node)
    n = static_size(node.args[0], a["dim"][0])
    total: Term = a["self"].op(aten.sum.dim_IntList, a["dim"], a["keepdim"])
    return total * (1.0 / n) if n is not None else total / a["self"].size(a["dim"][0])


def _mean_of_parts(edit: Edit, node: fx.Node) -> Term:
    """mean(x) = (sum(first half) + sum(second half)) / n, over a known number of elements."""
    a = arguments(edit, node)
    axis = a["dim"][0]
    n: Any = static_size(node.args[0], axis)
    halves = [a["self"].part(axis, *ends) for ends in ((0, n // 2), (n // 2, n))]
    sums = [half.op(aten.sum.dim_IntList, [axis], a["keepdim"]) for half in halves]
    return (sums[0] + sums[1]) / n


def _mean_as_matmul(edit: Edit, node: fx.Node) -> Term:
    """mean(x) = x @ (1/n, ..., 1/n), over the last axis."""
    a = arguments(edit, node)
    x: Term = a["self"]
    n = static_size(x.node, -1)
    ones = call(edit, aten.full.default, [n, 1], 1.0 / (n or 1), dtype=node.meta["val"].dtype)
    mean = x @ ones
    return mean if a["keepdim"] else mean.op(aten.squeeze.dim, -1)


def _is_mean_over_one(node: fx.Node, *, known: bool = True) -> bool:
    a = raw_arguments(node)
    axes = a["dim"]
    return a["dtype"] is None and len(axes) == 1 and (not known or static_size(a["self"], axes[0]) is not None)


def _is_mean_over_last(node: fx.Node) -> bool:
    a = raw_arguments(node)
    value = recorded_tensor(a["self"])
    return _is_mean_over_one(node) and value is not None and a["dim"][0] in (-1, value.dim() - 1)


def _mean_in_two_steps(edit: Edit, node: fx.Node) -> Term:
    """The mean over two axes is the mean over one of the means over the other."""
    a = arguments(edit, node)
    if node.target is _MEAN:
        first, second = sorted(axis % a["self"].rank for axis in a["dim"])
        inner = a["self"].op(_MEAN, [second], a["keepdim"])
        return inner.op(_MEAN, [first], a["keepdim"])
    return Term(edit, a["self"].node).mean(-1).mean(-2)


def _is_mean_over_two(node: fx.Node) -> bool:
    if node.target is _MEAN:
        return raw_arguments(node)["dtype"] is None and len(raw_arguments(node)["dim"]) == 2
    return list(raw_arguments(node)["output_size"]) == [1, 1]


KINDS: Final[tuple[Kind, ...]] = (
    built("reassociated-sum", (_ADD,), _reassociated_sum, _adds_a_sum, keeps_16_bits=True),
    built("negated-difference", (_ADD, _SUB), _negated_difference, _has_two_tensors, exactness=Exactness.BITWISE),
    built("stacked-sum", (_ADD,), _stacked_sum, _has_equal_shapes, keeps_16_bits=True),
    built("mean-as-product", (_MEAN,), _mean_as_product, lambda n: _is_mean_over_one(n, known=False)),
    built("mean-of-parts", (_MEAN,), _mean_of_parts, _is_mean_over_one),
    built("mean-as-matmul", (_MEAN,), _mean_as_matmul, _is_mean_over_last),
    built("mean-in-two-steps", (_MEAN, aten.adaptive_avg_pool2d.default), _mean_in_two_steps, _is_mean_over_two),
)
