"""Edges that lead to the wrong value."""

import operator
from collections.abc import Iterator

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import with_arguments
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import (
    ATTENTION,
    argument,
    aten,
    calls,
    is_activation,
    is_batch_norm,
    is_float,
    is_stored,
    same_type,
    shape,
    source,
)

_COPIES = {aten.clone.default, aten.alias.default, aten.reshape.default, aten.expand.default}


def _computed(value: object) -> bool:
    return isinstance(value, fx.Node) and not is_stored(value) and is_float(value)


def _adds_two(node: fx.Node) -> bool:
    return node.target is aten.add.Tensor and _computed(node.args[0]) and _computed(node.args[1])


def _differ(node: fx.Node) -> bool:
    return node.args[0] is not node.args[1] and same_type(node.args[0], node.args[1])


@mutates(calls(aten.sub.Tensor, aten.div.Tensor, where=lambda n: len(shape(n)) > 0))
def operands_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """a - b -> b - a, and a / b -> b / a."""
    if isinstance(node.args[1], fx.Node):
        return with_arguments(edit, node, {0: node.args[1], 1: node.args[0]})
    inverse = edit.call(aten.reciprocal.default, node.args[0])
    return edit.call(aten.mul.Tensor, inverse, node.args[1])


@mutates(calls(aten.where.self, where=lambda node: same_type(node.args[1], node.args[2])))
def branches_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """where(c, a, b) -> where(c, b, a)."""
    return with_arguments(edit, node, {1: node.args[2], 2: node.args[1]})


@mutates(calls(aten.cat.default, where=lambda n: len(set(n.args[0])) > 1))  # type: ignore[arg-type]  # a list
def parts_in_another_order(edit: Edit, node: fx.Node) -> fx.Node:
    """cat(a, b) -> cat(b, a)."""
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # a list of nodes
    return with_arguments(edit, node, {0: parts[::-1]})


@mutates(calls(ATTENTION))
def query_and_key_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """attention(q, k, v) -> attention(k, q, v)."""
    return with_arguments(edit, node, {0: node.args[1], 1: node.args[0]})


@mutates(calls(ATTENTION))
def key_and_value_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """attention(q, k, v) -> attention(q, v, k)."""
    return with_arguments(edit, node, {1: node.args[2], 2: node.args[1]})


def _one_of_several(node: fx.Node) -> bool:
    is_item = node.target is operator.getitem and not is_batch_norm(source(node))
    return is_item and len(source(node).users) > 1


@mutates(_one_of_several)
def another_part_taken(edit: Edit, node: fx.Node) -> fx.Node:
    """parts[i] -> parts[j]."""
    count = len(source(node).users)
    return edit.call(operator.getitem, node.args[0], (int(argument(node, 1)) + 1) % count)


@mutates(_adds_two)
def left_summand_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """a + b -> b."""
    return _summand(edit, node, 1)


@mutates(_adds_two)
def right_summand_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """a + b -> a."""
    return _summand(edit, node, 0)


def _summand(edit: Edit, node: fx.Node, position: int) -> fx.Node:
    kept, lost = source(node, position), source(node, 1 - position)
    # Of the other summand its shape alone stays, where it is the larger one.
    return edit.call(aten.add.Tensor, kept, edit.call(aten.zeros_like.default, lost))


@mutates(_adds_two)
def summand_twice(edit: Edit, node: fx.Node) -> fx.Node:
    """a + b -> a + 2 b."""
    return edit.call(aten.add.Tensor, *node.args[:2], alpha=2)


@mutates(_adds_two)
def sum_slightly_scaled(edit: Edit, node: fx.Node) -> fx.Node:
    """a + b -> a + (1 + 1e-6) b."""
    return edit.call(aten.add.Tensor, *node.args[:2], alpha=1 + 1e-6)


@mutates(_adds_two)
def difference_for_sum(edit: Edit, node: fx.Node) -> fx.Node:
    """a + b -> a - b."""
    return edit.call(aten.sub.Tensor, *node.args[:2])


def _norm_beside(node: fx.Node) -> tuple[int, fx.Node] | None:
    """A summand, and a norm that reads it."""
    for position in (0, 1) if _adds_two(node) else ():
        summand = source(node, position)
        for user in summand.users:
            if user.target is aten.layer_norm.default and user < node:
                return position, user
            is_gated = user.target is aten.mul.Tensor and source(user, 1).target is aten.rsqrt.default
            if is_gated and user < node and same_type(user, summand):
                return position, user
    return None


@mutates(lambda node: _norm_beside(node) is not None)
def residual_taken_after_the_norm(edit: Edit, node: fx.Node) -> fx.Node:
    """x + f(norm(x)) -> norm(x) + f(norm(x))."""
    found = _norm_beside(node)
    assert found is not None
    return with_arguments(edit, node, {found[0]: found[1]})


def _earlier(node: fx.Node, of: fx.Node) -> Iterator[fx.Node]:
    """Computed values before ``node`` that have the type of ``of``, the nearest first."""
    while of.target in _COPIES:
        of = source(of)
    before = node.prev
    while before.op != "root":
        is_other = before is not of and before.op == "call_function" and before.target not in _COPIES
        if is_other and same_type(before, of) and not is_stored(before):
            yield before
        before = before.prev


def _has_older_sum(node: fx.Node) -> bool:
    return _adds_two(node) and any(_adds_two(n) for n in _earlier(node, source(node)))


@mutates(_has_older_sum)
def residual_of_an_older_block(edit: Edit, node: fx.Node) -> fx.Node:
    """x + f(x) -> an older x + f(x)."""
    older = next(n for n in _earlier(node, source(node)) if _adds_two(n) and n not in node.all_input_nodes)
    return with_arguments(edit, node, {0: older})


def _has_neighbour(node: fx.Node) -> bool:
    first = argument(node, 0)
    is_candidate = is_activation(node) and _computed(first)
    return is_candidate and next(_earlier(node, first), None) is not None


@mutates(_has_neighbour)
def input_from_a_neighbour(edit: Edit, node: fx.Node) -> fx.Node:
    """f(x) -> f(y), y being the nearest earlier value of equal type."""
    return with_arguments(edit, node, {0: next(_earlier(node, source(node)))})


def _skippable(node: fx.Node) -> bool:
    inner = argument(node, 0)
    if not (is_activation(node) and _computed(inner)) or inner.target in _COPIES:
        return False
    inputs = [n for n in inner.all_input_nodes if _computed(n)]
    return bool(inputs) and inner.op == "call_function" and same_type(inputs[0], inner)


@mutates(_skippable)
def operator_skipped(edit: Edit, node: fx.Node) -> fx.Node:
    """f(g(x)) -> f(x)."""
    inner = source(node)
    skipped = next(n for n in inner.all_input_nodes if _computed(n))
    return with_arguments(edit, node, {0: skipped})


@mutates(
    calls(aten.mul.Tensor, where=lambda node: _computed(node.args[0]) and _computed(node.args[1]) and _differ(node))
)
def factor_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """a b -> a."""
    return edit.call(aten.mul.Tensor, node.args[0], 1.0)


def _is_gated(node: fx.Node) -> bool:
    return node.target is aten.mul.Tensor and argument(node, 0) is not None and _acts(node.args[0]) and _differ(node)


def _acts(value: object) -> bool:
    return isinstance(value, fx.Node) and value.target in (aten.silu.default, aten.gelu.default)


@mutates(_is_gated)
def gate_on_the_other_branch(edit: Edit, node: fx.Node) -> fx.Node:
    """silu(a) b -> a silu(b)."""
    gate = source(node)
    acted = edit.call(gate.target, node.args[1])
    return edit.call(aten.mul.Tensor, gate.args[0], acted)


@mutates(calls(aten.cos.default, aten.sin.default))
def sine_and_cosine_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """cos(x) <-> sin(x)."""
    return edit.call(aten.sin.default if node.target is aten.cos.default else aten.cos.default, node.args[0])


@mutates(calls(aten.neg.default))
def sign_lost(edit: Edit, node: fx.Node) -> fx.Node:
    """-x -> x."""
    return source(node)


@mutates(lambda node: is_activation(node) and is_float(argument(node, 0)), most=GENERIC)
def scaled_for_dropout(edit: Edit, node: fx.Node) -> fx.Node:
    """f(x) -> f(x) / 0.9, as dropout does while it is on."""
    again = edit.repeat(node, {})
    return edit.call(aten.div.Tensor, again, 0.9)
