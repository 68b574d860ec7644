"""What the program returns."""

import operator

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, constant_like, positions, replaced_where, size
from tests.mutation.kind import mutates
from tests.mutation.reading import aten, is_float, same_type


def _is_returned(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _returned(node: fx.Node) -> bool:
    return node.op == "call_function" and _is_returned(node) and is_float(node)


def _twin_output(node: fx.Node) -> fx.Node | None:
    """A later output of equal type that does not depend on this one."""
    output = next((user for user in node.users if user.op == "output"), None)
    for other in output.all_input_nodes if output is not None else ():
        if other > node and same_type(other, node) and node not in other.all_input_nodes:
            return other
    return None


@mutates(lambda node: _returned(node) and _twin_output(node) is not None)
def outputs_swapped(edit: Edit, node: fx.Node) -> fx.Node | None:
    """(a, b) -> (b, a)."""
    other = _twin_output(node)
    assert other is not None
    with edit.before(other.next):
        first, second = again(edit, node), again(edit, other)
    edit.replace(node, second)
    edit.replace(other, first)
    return None


@mutates(_returned)
def output_slightly_shifted(edit: Edit, node: fx.Node) -> fx.Node:
    """The output -> its sum with 1e-6."""
    return edit.call(aten.add.Tensor, again(edit, node), 1e-6)


@mutates(_returned)
def last_sample_not_written(edit: Edit, node: fx.Node) -> fx.Node:
    """The last sample of the output -> zero, unless it is the only one."""
    value = again(edit, node)
    last = edit.call(operator.sub, size(edit, node, 0), 1)
    place = positions(edit, node, 0)
    is_last = edit.call(aten.ge.Scalar, place, last)
    is_further = edit.call(aten.gt.Scalar, place, 0)
    lost = edit.call(aten.logical_and.default, is_last, is_further)
    return replaced_where(edit, lost, constant_like(edit, value, 0.0), value)


@mutates(_returned)
def output_centred(edit: Edit, node: fx.Node) -> fx.Node:
    """Logits -> logits minus their mean, which leaves every softmax the same."""
    value = again(edit, node)
    return edit.call(aten.sub.Tensor, value, edit.call(aten.mean.dim, value, [-1], True))


@mutates(_returned)
def output_scaled(edit: Edit, node: fx.Node) -> fx.Node:
    """Logits -> 1.0001 times the logits, which leaves every decision the same."""
    return edit.call(aten.mul.Tensor, again(edit, node), 1.0001)
